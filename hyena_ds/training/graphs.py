"""A micro step as one CUDA graph: forward and backward are recorded once for each shape, and replayed.

    batch --copied into the graph's own--> replay --> loss, sums, and the gradient of every parameter
    engine.backward(loss x scale) --> those gradients x scale, where the engine expects gradients

A short context gives a card less to do than the host needs to say it: thousands of kernels of some microseconds. A graph
is said once. It takes its parameters where they lie, and is recorded again when they have moved.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hyena_ds.config.schema import RunConfig
from hyena_ds.data.loader import MicroBatch
from hyena_ds.errors import UserError
from hyena_ds.model.filter_cache import FilterCache
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.dropout import DropoutKey
from hyena_ds.tasks.task import Objective

LONGEST = 32_768
"""Tokens of a rank's sequences, up to which a step is recorded; above, kernels take longer than it takes to start them."""
_MOST = 16
"""Shapes that are recorded; each holds the memory of a pass. Others run as they are."""
_WARM_UP = 3
"""Passes before the recording: libraries make plans and workspaces in the first ones."""


Recorder: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]
"""record(work) -> a function that does `work` again on the same tensors."""


def record_on_device(work: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of `work`, which must neither wait for the device nor make tensors from data."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # The watchdog's thread may ask about events meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


def check_graphs(config: RunConfig, device: torch.device) -> None:
    """Raise UserError where `cuda_graphs` is asked for and cannot be had."""
    if not config.cuda_graphs:
        return
    if device.type != "cuda":
        raise UserError(
            f"cuda_graphs: found a run on the {device.type.upper()}, wanted one on CUDA devices; set cuda_graphs: false"
        )
    if config.zero_stage == 3:
        raise UserError(
            "cuda_graphs: found zero_stage 3, under which parameters lie elsewhere in every pass, wanted 0 to 2; "
            "lower it, or set cuda_graphs: false"
        )


class GraphedForward:
    """Stands for the `forward` of an objective. Passes that cannot be recorded run as they are.

    These are passes without gradients, longer than LONGEST tokens, of a cut sequence, watched, or of one shape too many. Every
    pass evaluates the filters anew, also among the micro steps of one optimizer step.
    """

    def __init__(self, objective: Objective, record: Recorder | None = None):
        self._objective, self._record = objective, record or record_on_device
        self._forward = objective.forward
        self._recording = False
        self._recorded: dict[Hashable, _Recorded] = {}
        self._places: list[int] = []

    def __call__(self, batch: MicroBatch, call: ForwardPass) -> tuple[Tensor, ...]:
        """As `Objective.forward`."""
        if self._recording or not _can_be_recorded(call):
            return self._forward(batch, call)
        parameters = [parameter for parameter in self._objective.parameters() if parameter.requires_grad]
        places = [parameter.data_ptr() for parameter in self._objective.parameters()]
        if places != self._places:
            self._recorded.clear()
            self._places = places
        shape = _shape(batch, call)
        if shape not in self._recorded:
            if len(self._recorded) == _MOST:
                return self._forward(batch, call)
            self._recorded[shape] = _Recorded(self._differentiate, batch, call, self._record)
        outputs: tuple[Tensor, ...] = _Replay.apply(self._recorded[shape], batch, call, *parameters)
        return outputs

    def _differentiate(
        self, batch: MicroBatch, call: ForwardPass
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """What `forward` returns, and the gradient of its loss by every trained parameter.

        It is taken by aliases of the parameters: autograd has tied these themselves to the stream of the first pass, and a
        recording may not wait for that.
        """
        state = {**dict(self._objective.named_parameters()), **dict(self._objective.named_buffers())}
        aliases = {name: tensor.detach().requires_grad_(tensor.requires_grad) for name, tensor in state.items()}
        self._recording = True
        try:
            with torch.enable_grad():
                outputs = torch.func.functional_call(self._objective, aliases, (batch, call))
                trained = [alias for alias in aliases.values() if alias.requires_grad]
                return outputs, torch.autograd.grad(outputs[0], trained, allow_unused=True)
        finally:
            self._recording = False


def _can_be_recorded(call: ForwardPass) -> bool:
    layout = call.layout
    alone = layout.exchange.group is None and call.watch is None
    return torch.is_grad_enabled() and alone and layout.local_length <= LONGEST


def _shape(batch: MicroBatch, call: ForwardPass) -> Hashable:
    tensors = tuple((tensor.shape, tensor.dtype) for tensor in _tensors(batch) if tensor is not None)
    dtypes = call.compute_dtype, call.exchange_dtype
    how = (call.layout.context_length, call.policy, dtypes, call.convolution.name, call.kernels)
    return tensors, how, None if call.dropout is None else call.dropout.seed


def _tensors(batch: MicroBatch) -> tuple[Tensor | None, ...]:
    return (batch.token_ids_Bl, batch.targets, batch.samples_B, batch.lengths_B)


class _Recorded:
    """One shape's graph, with its inputs and outputs."""

    def __init__(
        self,
        differentiate: Callable[[MicroBatch, ForwardPass], tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]],
        batch: MicroBatch,
        call: ForwardPass,
        record: Recorder,
    ):
        lengths_B = None if batch.lengths_B is None else batch.lengths_B.clone()
        self._batch = MicroBatch(batch.token_ids_Bl.clone(), batch.targets.clone(), batch.samples_B.clone(), lengths_B)
        self._step: Tensor | None = None
        key = call.dropout
        if key is not None:
            self._step = torch.zeros((), dtype=torch.int64, device=batch.samples_B.device)
            key = DropoutKey(key.seed, self._step, self._batch.samples_B)
        self.outputs: list[Tensor] = []
        self.gradients: list[Tensor | None] = []

        def work() -> None:
            how = replace(call, dropout=key, filters=FilterCache())
            outputs, gradients = differentiate(self._batch, how)
            found = [*(output.detach() for output in outputs), *gradients]
            if not self.outputs:
                self.outputs = [torch.empty_like(output) for output in outputs]
                self.gradients = [None if x is None else torch.empty_like(x) for x in gradients]
            for kept, new in zip((*self.outputs, *self.gradients), found, strict=True):
                if kept is not None and new is not None:
                    kept.copy_(new)

        self._replay = record(work)

    def run(self, batch: MicroBatch, call: ForwardPass) -> None:
        """Put `batch` in the place of the recorded one, and replay."""
        for kept, new in zip(_tensors(self._batch), _tensors(batch), strict=True):
            if kept is not None and new is not None:
                kept.copy_(new)
        if self._step is not None and call.dropout is not None:
            self._step.fill_(call.dropout.step)
        self._replay()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recorded: _Recorded, batch: MicroBatch, call: ForwardPass, *parameters: Tensor) -> Any:
        recorded.run(batch, call)
        ctx.recorded = recorded
        outputs = tuple(output.clone() for output in recorded.outputs)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        return None, None, None, *(None if g is None else g * gradient for g in ctx.recorded.gradients)
