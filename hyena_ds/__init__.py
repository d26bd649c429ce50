"""hyena-ds: a distributed trainer for HyenaDNA on DeepSpeed.

import hyena_ds
model = hyena_ds.load_model("runs/quickstart")     a run, a checkpoint, a weights file or published weights
logits = model(token_ids)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyena_ds.checkpoints.weights import load_model

__version__ = "0.1.0"
__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `hyena-ds check` and `hyena-ds prep` run without torch.
    if name == "load_model":
        from hyena_ds.checkpoints.weights import load_model

        return load_model
    raise AttributeError(f"module 'hyena_ds' has no attribute '{name}'")
