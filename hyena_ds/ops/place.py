"""Where work runs, and so in which form: on a CPU tiles stay in its caches; on a device every kernel is a pass through memory.

Functions that have a form of their own for a device ask here, so that a test can run that form on a CPU.
"""

from __future__ import annotations

import torch


def on_device(device: torch.device) -> bool:
    """Whether `device` is an accelerator, or stands for one."""
    return device.type != "cpu"
