"""Load of the machine while a trial trains, under the names that MLflow's page shows as system
metrics.

MLflow's own monitor (mlflow/system_metrics) is a thread for each run that samples every 10 s and
writes to the server itself. Here the worker measures once an epoch, and the values travel with the
epoch's event; names and units are MLflow's. They are of the whole machine, the GPU's of the whole
device: of trials that run at once on it, each shows the same.
"""

from __future__ import annotations

from typing import Any

import psutil

from pointsweep.utils.nvml import gpu_handle

MEGABYTE = 1e6  # as MLflow has it


class SystemMonitor:
    """Monitor of this machine's CPUs and memory, and of one GPU if a number is given: that of the
    GPU among those that the process sees.
    """

    def __init__(self, gpu: int | None = None) -> None:
        self.gpu = gpu
        self.handle = None if gpu is None else gpu_handle(gpu)
        self.cpu_before = _cpu_seconds()

    def read(self) -> dict[str, float]:
        """Return the values by name: of the CPUs since the last reading, of all else now."""
        before = self.cpu_before
        self.cpu_before = _cpu_seconds()
        memory = psutil.virtual_memory()
        values = {
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
        }

        total = self.cpu_before[1] - before[1]

        if total > 0:
            busy = self.cpu_before[0] - before[0]
            values["cpu_utilization_percentage"] = min(
                max(100 * busy / total, 0.0), 100.0
            )

        if self.handle is not None:
            values |= _gpu_values(self.handle, f"gpu_{self.gpu}")

        return {name: round(value, 1) for name, value in sorted(values.items())}


def _cpu_seconds() -> tuple[float, float]:
    """Return the seconds that this machine's CPUs have worked so far, and all of them.

    Not by `psutil.cpu_percent`: it counts from its last call, which with several trials in a
    process is another trial's.
    """
    times = psutil.cpu_times()
    # Linux counts the time of guests in that of users too.
    total = (
        sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    )
    waited = times.idle + getattr(times, "iowait", 0.0)

    return total - waited, total


def _gpu_values(handle: Any, name: str) -> dict[str, float]:
    """Return what NVML says of a GPU now; nothing of what its driver does not say."""
    import pynvml

    values = {}

    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        values[f"{name}_memory_usage_megabytes"] = memory.used / MEGABYTE
        values[f"{name}_memory_usage_percentage"] = 100 * memory.used / memory.total
    except pynvml.NVMLError:
        pass

    try:
        # over the last second, or less
        rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
        values[f"{name}_utilization_percentage"] = float(rates.gpu)
    except pynvml.NVMLError:
        pass

    return values
