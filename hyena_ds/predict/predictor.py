"""Forward passes of a trained model, alone or on a grid, without DeepSpeed.

    weights --load--> Predictor --token_ids_BL, on every rank--> this rank's slice of hidden states or logits

The filters are evaluated once and held. What comes out depends on no batch size, padding, number of ranks or grid, but
for the last digits: the model is causal, so what follows a sequence changes nothing of it.

B batch, L context length, l local length, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.checkpoints.weights import load_model
from hyena_ds.config.policy import POLICIES
from hyena_ds.errors import UserError
from hyena_ds.genome.tokenizer import PAD
from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.model.filter_cache import HeldFilters
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.convolution_backend import FFT, Convolution
from hyena_ds.parallel.layout import Exchange, Layout


class Predictor:
    """A model whose parameters stand still. On a grid all ranks of a sequence group call the same methods: collective."""

    def __init__(
        self,
        model: HyenaDNA,
        exchange: Exchange | None = None,
        precision: torch.dtype = torch.float32,
        convolution: Convolution = FFT,
    ):
        """`exchange` reaches the ranks that share a sequence; None: every sequence is whole here.

        `precision` is that of projections and MLP. Raises UserError where the ranks do not divide the model's channels.
        """
        self.model = model.eval()
        self._exchange = exchange or Exchange()
        width = model.config.width
        if width % self._exchange.size:
            raise UserError(
                f"sequence_parallel: found {self._exchange.size} ranks, wanted a divisor of the model's width {width}; "
                "take fewer"
            )
        self._run = ForwardPass(
            Layout.whole(1),
            filters=HeldFilters(),
            policy=POLICIES["leanest"],
            compute_dtype=precision,
            convolution=convolution,
        )

    @classmethod
    def load(cls, path: str | Path, exchange: Exchange | None = None, device: str | torch.device = "cpu") -> Predictor:
        """A Predictor of a weights file, a checkpoint or a run. Raises UserError where there are no weights."""
        return cls(load_model(path).to(device), exchange)

    def layout(self, context_length: int) -> Layout:
        """The slice of a sequence of so many tokens that is here; its end may be padding.

        Raises UserError where the ranks' equal slices would reach beyond the model's maximum.
        """
        P, maximum = self._exchange.size, self.model.config.maximum_context
        # A slice holds the halo of its right neighbour.
        local = max(-(-context_length // P), 2 if P > 1 else 1)
        if context_length < 1 or local * P > maximum:
            on_ranks = f" in {P} equal slices" if P > 1 else ""
            raise UserError(
                f"found a sequence of {context_length:,} tokens, wanted 1 to {maximum // P * P:,}{on_ranks}, for the model's "
                f"maximum_context of {maximum:,}; cut it, or extend the model"
            )
        return Layout(local * P, self._exchange.index * local, local, self._exchange)

    @torch.no_grad()
    def hidden(self, token_ids_BL: Tensor) -> Tensor:
        """(B, L) -> (B, l, D): after the final norm, of the tokens of `layout(L)` that are no padding."""
        L = token_ids_BL.shape[1]
        layout = self.layout(L)
        hidden_BlD = self.model.backbone(self.slice_here(token_ids_BL, layout), self.forward_pass(layout))
        return hidden_BlD[:, : max(0, min(layout.local_length, L - layout.offset))]

    def slice_here(self, token_ids_BL: Tensor, layout: Layout) -> Tensor:
        """(B, L) -> (B, l): this rank's tokens on the model's device, with padding behind the last."""
        padded = F.pad(token_ids_BL, (0, layout.context_length - token_ids_BL.shape[1]), value=PAD)
        here = padded[:, layout.offset : layout.offset + layout.local_length].contiguous()
        return here.to(self.model.backbone.embedding.weight.device)

    def forward_pass(self, layout: Layout, filters: HeldFilters | None = None) -> ForwardPass:
        """How a forward pass over a layout runs, with the filters that are held for whole sequences or with others."""
        return replace(self._run, layout=layout, filters=filters or self._run.filters)

    @torch.no_grad()
    def logits(self, token_ids_BL: Tensor) -> Tensor:
        """(B, L) -> (B, l, V), of the same tokens."""
        return F.linear(self.hidden(token_ids_BL), self.model.backbone.embedding.weight)

    def whole(self, x_BlV: Tensor, context_length: int) -> Tensor:
        """(B, l, ...) of all ranks -> (B, L, ...) on every one of them."""
        group = self._exchange.group
        if group is None:
            return x_BlV
        layout = self.layout(context_length)
        missing = layout.local_length - x_BlV.shape[1]
        padded = torch.cat((x_BlV, x_BlV.new_zeros((x_BlV.shape[0], missing, *x_BlV.shape[2:]))), 1).contiguous()
        pieces = [torch.empty_like(padded) for _ in range(self._exchange.size)]
        dist.all_gather(pieces, padded, group=group)
        return torch.cat(pieces, 1)[:, :context_length]
