"""What a computer is, for the figures that it made."""

from __future__ import annotations

import os
import platform

import torch


def machine(device: str | None = None) -> str:
    """System, cores, memory, GPU where one is used, versions of Python and PyTorch; nothing that names the computer."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() and device != "cpu" else ""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__.split('+')[0]}"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB{gpu}, {versions}"
