"""Devices by name."""

import contextlib
import os
from typing import Any

import torch

from engine.device.base import Device
from traces.errors import InputError

NAMES = ("auto", "emulated", "cuda")


def host_memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def make_device(name: str, **options: Any) -> Device:
    """A device by name: `cuda`, `emulated`, or `auto` for the first of them that there is.

    `options` of an emulated device are those of EmulatedDevice; what is not given is unthrottled, and its memory is
    half of this machine's.
    """
    if name not in NAMES:
        raise InputError(f"device: {name!r} is not known; give one of {', '.join(NAMES)}")
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        from engine.device.cuda import CudaDevice

        return CudaDevice(**options)
    from engine.device.emulated import EmulatedDevice

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usual = {
        "h2d_bytes_per_s": None,
        "d2h_bytes_per_s": None,
        "memory_bytes": host_memory_bytes() // 2,
        "gpu_threads": max(1, cores // 2),
        "cpu_threads": max(1, cores - cores // 2),
    }
    return EmulatedDevice(**{**usual, **options})


def open_device(device: str | Device) -> contextlib.AbstractContextManager[Device]:
    """A device by name, closed at the end; or one that somebody else opened and will close."""
    return contextlib.nullcontext(device) if isinstance(device, Device) else make_device(device)
