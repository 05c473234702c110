"""Counters of energy: sums of packages, a counter that begins anew, and a machine that has none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from pointsweep.training.record_builder import used
from pointsweep.utils.energy import Meter, meter, rapl
from pointsweep.utils.nvml import gpu_handle


@pytest.fixture(autouse=True)
def _forgets_its_gpus() -> Iterator[None]:
    yield
    gpu_handle.cache_clear()


def package(folder: Path, name: str, microjoules: object) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")


def test_packages_add_up_and_their_parts_do_not_count_twice(tmp_path: Path):
    package(tmp_path, "intel-rapl:0", 3_000_000)
    package(tmp_path, "intel-rapl:0:0", 1_000_000)
    package(tmp_path, "intel-rapl:1", 500_000)
    assert rapl(tmp_path) == 3.5


def test_what_cannot_be_read_is_none(tmp_path: Path):
    assert rapl(tmp_path) is None
    package(tmp_path, "intel-rapl:0", "?")
    assert rapl(tmp_path) is None


def test_a_meter_tells_what_was_added_since():
    gpu, cpu, lost = [10.0, 25.0, 5.0, 7.0], [1.0, 2.0, 4.0, 8.0], [1.0, None, 3.0, 4.0]
    made = Meter({name: iter(values).__next__ for name, values in (("gpu", gpu), ("cpu", cpu), ("lost", lost))})
    assert made.read() == {"gpu": 15.0, "cpu": 1.0}
    assert made.read() == {"cpu": 2.0}, "the GPU's counter began anew, the other's last value is not known"
    assert made.read() == {"gpu": 2.0, "cpu": 4.0, "lost": 1.0}


def test_this_machine_is_read_or_not_but_never_fails():
    assert set(meter().read()) <= {"cpu"}


def test_only_a_device_of_every_epoch_is_told():
    assert used([{"gpu": 1.0, "cpu": 2.0}, {"gpu": 3.0}]) == {"gpu": 4.0}
    assert used([{}, {"gpu": 3.0}]) == {}


class NVMLError(Exception):
    """The stand-in's error, under the name of nvidia-ml-py's."""


def stand_in(monkeypatch, counter: Callable[[object], int], known: str) -> None:
    """A pynvml that knows the GPU of one PCI address, and a CUDA device with the address 0:3b:0."""
    library = ModuleType("pynvml")

    def handle_of(address: str) -> str:
        if address != known:
            raise NVMLError("Not Found")
        return f"handle of {address}"

    library.NVMLError = NVMLError
    library.nvmlInit = lambda: None
    library.nvmlDeviceGetHandleByPciBusId = handle_of
    library.nvmlDeviceGetTotalEnergyConsumption = counter
    monkeypatch.setitem(sys.modules, "pynvml", library)
    place = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: place)
    gpu_handle.cache_clear()


def test_a_gpu_is_found_by_its_pci_address_and_read_in_joules(monkeypatch):
    millijoules = iter([1_000, 3_500])
    stand_in(monkeypatch, lambda handle: next(millijoules), known="00000000:3b:00.0")
    assert meter(gpu=0).read()["gpu"] == 2.5


def test_a_gpu_that_nvml_does_not_know_or_cannot_read_is_left_out(monkeypatch):
    def refuses(handle: object) -> int:
        raise NVMLError("Not Supported")

    stand_in(monkeypatch, refuses, known="00000000:3b:00.0")
    assert "gpu" not in meter(gpu=0).read()
    stand_in(monkeypatch, lambda handle: 1, known="00000000:af:00.0")
    assert "gpu" not in meter(gpu=0).read()


def test_without_the_package_no_gpu_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    gpu_handle.cache_clear()
    assert "gpu" not in meter(gpu=0).read()
