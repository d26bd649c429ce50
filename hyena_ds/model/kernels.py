"""What computes the parts of the model around the long convolution: portable code, or kernels for a device, behind one value.

ForwardPass.kernels: None, the portable functions of operator.py, mlp.py, filter.py and backbone.py; or Kernels
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from hyena_ds.model.filter import FilterWeights
    from hyena_ds.model.forward_pass import ForwardPass
    from hyena_ds.model.mlp import MLPWeights
    from hyena_ds.model.operator import Kept
    from hyena_ds.model.projection import OperatorWeights
    from hyena_ds.ops.convolution_backend import Convolution
    from hyena_ds.ops.cross_entropy import Kernel as LossKernel
    from hyena_ds.parallel.layout import CopyPieces


@dataclass(frozen=True)
class Kernels:
    """Functions that take and return what the portable functions of the same names do."""

    name: str
    operator_forward: Callable[..., tuple[Tensor, Kept]]
    operator_backward: Callable[..., tuple[Tensor, OperatorWeights]]
    mlp_forward: Callable[..., tuple[Tensor, Tensor | None]]
    mlp_backward: Callable[..., tuple[Tensor, MLPWeights]]
    evaluate_filter: Callable[..., Tensor]
    filter_gradients: Callable[..., FilterWeights]
    fft_with_skip: Callable[[Tensor], Convolution] | None = None
    """(skip_g) -> FFT's convolution plus the skip term; None: the caller adds it."""
    embed: Callable[[Tensor, Tensor, float, ForwardPass], Tensor] | None = None
    """(ids_Bl, embedding_VD, dropout's probability, call) -> r_BlD; None: PyTorch's embedding, then dropout."""
    loss: LossKernel | None = None
    """Final norm, head and loss with their gradients; None: in tiles of PyTorch's operations."""
    copy_pieces: CopyPieces | None = None
    """Packs and unpacks what ranks exchange; None: PyTorch's copies."""
