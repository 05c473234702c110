"""Load of the machine, compared with MLflow's own monitors and with a formula written out."""

from __future__ import annotations

import sys
from collections import namedtuple
from types import ModuleType, SimpleNamespace

import psutil
import pytest
import torch
from mlflow.system_metrics.metrics import gpu_monitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

from pointsweep.utils.nvml import gpu_handle
from pointsweep.utils.system_metrics import SystemMonitor

Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest guest_nice")


@pytest.fixture(autouse=True)
def _forgets_its_gpus():
    yield
    gpu_handle.cache_clear()


def by_mlflow(monitor) -> dict[str, float]:
    monitor.collect_metrics()
    return monitor.aggregate_metrics()


def test_names_and_memory_are_those_of_mlflows_monitor(monkeypatch):
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    expected, read = by_mlflow(CPUMonitor()), {}
    monitor = SystemMonitor()
    while "cpu_utilization_percentage" not in read:  # no time has passed by the kernel's clock of 10 ms
        read = monitor.read()
    assert set(read) == set(expected)
    assert 0 <= read.pop("cpu_utilization_percentage") <= 100
    assert read == {name: expected[name] for name in read}


def test_the_load_of_the_cpus_is_of_the_time_since_the_last_reading(monkeypatch):
    # Guests' time is in user and nice too; waiting for a disk is idle.
    first = Times(100, 10, 20, 500, 30, 1, 2, 3, 50, 5)
    second = Times(130, 15, 30, 540, 35, 2, 3, 6, 60, 7)
    third = second._replace(idle=640)
    now = [first]
    monkeypatch.setattr(psutil, "cpu_times", lambda: now[0])
    psutil.cpu_percent()  # psutil counts from its last call, too
    monitor = SystemMonitor()
    now[0] = second
    busy = 30 + 5 + 10 + 1 + 1 + 3
    value = monitor.read()["cpu_utilization_percentage"]
    assert value == psutil.cpu_percent() == round(100 * busy / (busy + 40 + 5), 1)
    now[0] = third
    assert monitor.read()["cpu_utilization_percentage"] == psutil.cpu_percent() == 0.0


def stand_in(monkeypatch) -> ModuleType:
    """A pynvml of one GPU, which is CUDA's device 0."""
    library = ModuleType("pynvml")
    library.NVMLError = type("NVMLError", (Exception,), {})
    library.nvmlInit = lambda: None
    library.nvmlDeviceGetCount = lambda: 1
    library.nvmlDeviceGetHandleByIndex = lambda number: number
    library.nvmlDeviceGetHandleByPciBusId = lambda address: 0
    library.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(used=3 * 2**30, total=80 * 2**30)
    library.nvmlDeviceGetUtilizationRates = lambda handle: SimpleNamespace(gpu=97, memory=40)
    library.nvmlDeviceGetPowerUsage = lambda handle: 300_000
    library.nvmlDeviceGetEnforcedPowerLimit = lambda handle: 700_000
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(gpu_monitor, "pynvml", library, raising=False)
    place = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: place)
    gpu_handle.cache_clear()
    return library


def gpu_values() -> dict[str, float]:
    return {name: value for name, value in SystemMonitor(gpu=0).read().items() if name.startswith("gpu_0_")}


def test_a_gpus_values_equal_those_of_mlflows_monitor(monkeypatch):
    stand_in(monkeypatch)
    expected = by_mlflow(gpu_monitor.GPUMonitor())
    names = ("utilization_percentage", "memory_usage_megabytes", "memory_usage_percentage")
    assert gpu_values() == {f"gpu_0_{name}": expected[f"gpu_0_{name}"] for name in names}


def test_what_a_driver_does_not_say_is_left_out(monkeypatch):
    library = stand_in(monkeypatch)

    def refuses(handle):
        raise library.NVMLError("Not Supported")

    library.nvmlDeviceGetUtilizationRates = refuses
    assert set(gpu_values()) == {"gpu_0_memory_usage_megabytes", "gpu_0_memory_usage_percentage"}
    library.nvmlDeviceGetMemoryInfo = refuses
    assert gpu_values() == {}


def test_without_the_package_no_gpu_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    gpu_handle.cache_clear()
    assert gpu_values() == {}
