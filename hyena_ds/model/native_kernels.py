"""The model by the functions of ops/native: the value that a pass on a CPU is given."""

from __future__ import annotations

from hyena_ds.model.filter_native import evaluate_filter, filter_gradients
from hyena_ds.model.kernels import Kernels
from hyena_ds.model.mlp_native import mlp_backward, mlp_forward
from hyena_ds.model.operator_native import operator_backward, operator_forward

NATIVE = Kernels(
    "native", operator_forward, operator_backward, mlp_forward, mlp_backward, evaluate_filter, filter_gradients
)
