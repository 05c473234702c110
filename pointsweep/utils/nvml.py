"""The GPUs of this machine as NVML knows them, through nvidia-ml-py (the extra `gpu`)."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def gpu_handle(number: int) -> Any:
    """Return NVML's handle of the GPU with this number among those that the process sees; None
    without NVML, or if it does not know the GPU.

    The GPU is found by its PCI address: CUDA and NVML number them differently.
    """
    import torch

    try:
        import pynvml
    except ImportError:
        return None

    try:
        gpu: Any = torch.cuda.get_device_properties(number)
        address = (
            f"{gpu.pci_domain_id:08x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"
        )
        pynvml.nvmlInit()

        return pynvml.nvmlDeviceGetHandleByPciBusId(address)
    except (pynvml.NVMLError, AttributeError, RuntimeError, AssertionError):
        return None
