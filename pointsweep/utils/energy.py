"""Energy counters of this machine, where it lets us read them: an NVIDIA GPU by NVML, a CPU by
RAPL. Elsewhere nothing is read.

NVML is asked through nvidia-ml-py (the extra `gpu`); without it, or without a driver, no GPU is
measured. Both count what the whole device takes: of trials that run at once on it, each is given
all of it. Sources: NVML's reference, nvmlDeviceGetTotalEnergyConsumption (mJ since the driver was
loaded, Volta and later); the kernel's Documentation/power/powercap.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pointsweep.utils.nvml import gpu_handle

POWERCAP = Path("/sys/class/powercap")
Counter = Callable[
    [], float | None
]  # joules so far, from any start; None if it cannot be read


class Meter:
    """The joules that devices took since the meter was made, or since it was read last."""

    def __init__(self, counters: dict[str, Counter]) -> None:
        self.counters = counters
        self.before = {name: read() for name, read in counters.items()}

    def read(self) -> dict[str, float]:
        """Return readings by device (`gpu`, `cpu`), without those that cannot be read, or whose
        counter began anew since.
        """
        now = {name: read() for name, read in self.counters.items()}
        before = self.before
        self.before = now

        joules: dict[str, float] = {}

        for name, new in now.items():
            old = before[name]
            if old is not None and new is not None and new >= old:
                joules[name] = new - old

        return joules


def meter(gpu: int | None = None) -> Meter:
    """Return the meter of this machine's CPU packages, and of the GPU with this number among those
    that the process sees.
    """
    counters: dict[str, Counter] = {"cpu": rapl}
    if gpu is not None and (device := _gpu(gpu)) is not None:
        counters["gpu"] = device

    return Meter(counters)


def rapl(folder: Path = POWERCAP) -> float | None:
    """Joules of all CPU packages so far. Most systems let only root read them."""
    try:
        # intel-rapl:0 is a package; intel-rapl:0:1 a part of it.
        counted = []
        for path in sorted(folder.glob("intel-rapl:*/energy_uj")):
            if path.parent.name.count(":") == 1:
                counted.append(int(path.read_text()))
    except (OSError, ValueError):
        return None

    return sum(counted) / 1e6 if counted else None


def _gpu(number: int) -> Counter | None:
    """Return the counter of a GPU; None without NVML."""
    handle = gpu_handle(number)
    if handle is None:
        return None

    import pynvml

    def read() -> float | None:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
        except pynvml.NVMLError:  # a GPU before Volta, or a driver that does not say
            return None

    return read
