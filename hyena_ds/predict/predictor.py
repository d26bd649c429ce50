"""Forward passes of a trained model, alone or on a grid, without DeepSpeed.

    weights --load--> Predictor --token_ids_BL, on every rank--> this rank's slice of hidden states or logits
                                                             --> log-probabilities of all tokens, on every rank

The filters are evaluated once and held, where memory allows. What comes out depends on no batch size, padding, number of
ranks or grid, but for the last digits: the model is causal, so what follows a sequence changes nothing of it.

B batch, L context length, l local length, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.checkpoints.weights import load_model
from hyena_ds.config.policy import POLICIES
from hyena_ds.cost.memory import MOST_HELD_BYTES, held_filters
from hyena_ds.errors import UserError
from hyena_ds.genome.tokenizer import PAD
from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.model.block import Block
from hyena_ds.model.filter_cache import FilterCache, HeldFilters
from hyena_ds.model.forward_pass import ForwardPass, Watch
from hyena_ds.model.pooling import Pooling, pool
from hyena_ds.ops.convolution_backend import FFT, Convolution
from hyena_ds.ops.large import give_back
from hyena_ds.ops.sizes import GIVEN_BACK
from hyena_ds.ops.tiles import tiles
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
        self.exchange = exchange or Exchange()
        self.precision = precision
        self._held = HeldFilters()
        self._size = 0
        self._device = model.backbone.embedding.weight.device
        width = model.config.width
        if width % self.exchange.size:
            raise UserError(
                f"sequence_parallel: found {self.exchange.size} ranks, wanted a divisor of the model's width {width}; "
                "take fewer"
            )
        self._call = ForwardPass(
            Layout.whole(1),
            policy=POLICIES["leanest"],
            compute_dtype=precision,
            convolution=convolution,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        exchange: Exchange | None = None,
        device: str | torch.device = "cpu",
        shift: float | None = None,
    ) -> Predictor:
        """A Predictor of whatever `load_model` opens, with the filter's `shift` as there. Raises UserError as it does."""
        return cls(load_model(path, shift).to(device), exchange)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    def layout(self, context_length: int) -> Layout:
        """The slice of a sequence of so many tokens that is here; its end may be padding.

        Raises UserError where the ranks' equal slices would reach beyond the model's maximum.
        """
        P, maximum = self.exchange.size, self.model.config.maximum_context
        # A slice holds the halo of its right neighbour.
        local = max(-(-context_length // P), 2 if P > 1 else 1)
        if context_length < 1 or local * P > maximum:
            on_ranks = f" in {P} equal slices" if P > 1 else ""
            raise UserError(
                f"found a sequence of {context_length:,} tokens, wanted 1 to {maximum // P * P:,}{on_ranks}, for the model's "
                f"maximum_context of {maximum:,}; cut it, or extend the model"
            )
        return Layout(local * P, self.exchange.index * local, local, self.exchange)

    @torch.no_grad()
    def hidden(self, token_ids_BL: Tensor, layer: int | None = None, watch: Watch | None = None) -> Tensor:
        """(B, L) -> (B, l, D): after `layer` blocks, or, by default and after the last, the final norm; of the tokens of
        `layout(L)` that are no padding. `watch` is called by every block: see ForwardPass."""
        if layer is not None and layer < self.model.config.layers:
            return self._residual(token_ids_BL, layer, watch)
        hidden_BlD = self._residual(token_ids_BL, watch=watch)
        for here in _tiles(hidden_BlD):
            hidden_BlD[here] = self.model.backbone.final_norm(hidden_BlD[here])
        return hidden_BlD

    @torch.no_grad()
    def pooled(self, hidden_BlD: Tensor, lengths: Sequence[int], pooling: Pooling | None) -> Tensor:
        """Hidden states of sequences of these lengths, the longest of which is L -> (B, D), or, without a pooling,
        (B, L, D); the same on every rank."""
        L = max(lengths)
        if pooling is None:
            return self.whole(hidden_BlD, L)
        if not hidden_BlD.shape[1]:  # only padding is here
            hidden_BlD = hidden_BlD.new_zeros((hidden_BlD.shape[0], 1, hidden_BlD.shape[2]))
        return pool(hidden_BlD, pooling, self.layout(L), torch.tensor(lengths, device=hidden_BlD.device))

    @torch.no_grad()
    def logits(self, token_ids_BL: Tensor) -> Tensor:
        """(B, L) -> (B, l, V), of the same tokens."""
        return F.linear(self.hidden(token_ids_BL), self.model.backbone.embedding.weight)

    @torch.no_grad()
    def log_probabilities(self, token_ids_BL: Tensor) -> Tensor:
        """(B, L) -> (B, L - 1), in nats, the same on every rank: of each token but the first, after all that precede it.

        All columns of the head count, as in training.
        """
        inputs_BL, targets_BL = token_ids_BL[:, :-1], token_ids_BL[:, 1:]
        L = inputs_BL.shape[1]
        if L == 0:
            return torch.zeros(inputs_BL.shape)
        r_BlD = self._residual(inputs_BL)
        first = self.layout(L).offset
        B, l, _ = r_BlD.shape
        targets_Bl = targets_BL[:, first : first + l].to(r_BlD.device)
        backbone = self.model.backbone
        log_p_Bl = r_BlD.new_empty((B, l))
        for here in _tiles(r_BlD):
            logits_BnV = F.linear(backbone.final_norm(r_BlD[here]), backbone.embedding.weight)
            loss_n = F.cross_entropy(logits_BnV.flatten(0, 1), targets_Bl[here].long().flatten(), reduction="none")
            log_p_Bl[here] = -loss_n.view(targets_Bl[here].shape)
        return self.whole(log_p_Bl, L)

    @torch.no_grad()
    def filters(self, context_length: int) -> list[Tensor]:
        """Each block's k_dL of the channels that this rank holds, for lags below `context_length`; they are held."""
        call = replace(self._call, layout=self.layout(context_length), filters=self._held)
        return [block.filter(call)[:, :context_length] for block in self.blocks]

    @property
    def blocks(self) -> list[Block]:
        """The model's blocks in their order."""
        return [block for block in self.model.backbone.blocks if isinstance(block, Block)]

    def gathered(self, x_d: Tensor, owner: int) -> list[Tensor]:
        """The equally shaped tensors of all ranks of the sequence group, on its rank `owner`; nothing on the others."""
        group, mine = self.exchange.group, self.exchange.index == owner
        if group is None:
            return [x_d]
        x_d = x_d.contiguous()
        pieces = [torch.empty_like(x_d) for _ in range(self.exchange.size)] if mine else None
        dist.gather(x_d, pieces, dst=dist.get_global_rank(group, owner), group=group)
        return pieces or []

    def _residual(self, token_ids_BL: Tensor, blocks: int | None = None, watch: Watch | None = None) -> Tensor:
        """(B, L) -> (B, l, D): the residual after so many blocks, of the tokens of `layout(L)` that are no padding."""
        L = token_ids_BL.shape[1]
        layout = self.layout(L)
        size = token_ids_BL.shape[0] * layout.local_length * self.model.config.width * 4
        if max(size, self._size) >= GIVEN_BACK and size != self._size:
            give_back()  # blocks of the last pass's size would stay beside those of this one's
        self._size = size
        here_Bl = self.slice_here(token_ids_BL, layout)
        call = replace(self.forward_pass(layout), watch=watch)
        residual_BlD = self.model.backbone.residual(here_Bl, call, blocks)
        return residual_BlD[:, : max(0, min(layout.local_length, L - layout.offset))]

    def slice_here(self, token_ids_BL: Tensor, layout: Layout) -> Tensor:
        """(B, L) -> (B, l): this rank's tokens on the model's device, with padding behind the last."""
        padded_BL = F.pad(token_ids_BL, (0, layout.context_length - token_ids_BL.shape[1]), value=PAD)
        return padded_BL[:, layout.tokens].to(self._device, torch.long)

    def forward_pass(self, layout: Layout, filters: FilterCache | None = None) -> ForwardPass:
        """How a pass over a layout runs; with the filters of whole sequences, or with others."""
        return replace(self._call, layout=layout, filters=filters or self._filters(layout))

    def _filters(self, layout: Layout) -> FilterCache:
        """Those that are held, where they take no more than MOST_HELD_BYTES; else of one pass."""
        config = self.model.config
        held = held_filters(config, layout.context_length, self.exchange.size)
        return self._held if held <= MOST_HELD_BYTES else FilterCache()

    def whole(self, x_BlV: Tensor, context_length: int) -> Tensor:
        """(B, l, ...) of all ranks -> (B, L, ...) on every one of them."""
        group = self.exchange.group
        if group is None:
            return x_BlV
        layout = self.layout(context_length)
        missing = layout.local_length - x_BlV.shape[1]
        padded = torch.cat((x_BlV, x_BlV.new_zeros((x_BlV.shape[0], missing, *x_BlV.shape[2:]))), 1).contiguous()
        pieces = [torch.empty_like(padded) for _ in range(self.exchange.size)]
        dist.all_gather(pieces, padded, group=group)
        return torch.cat(pieces, 1)[:, :context_length]


def _tiles(x_BlD: Tensor) -> Iterator[tuple[slice, slice]]:
    B, l, D = x_BlD.shape
    for tile in tiles(B, l, D, x_BlD.device) if l else ():
        yield tile.rows, slice(tile.first, tile.last)
