"""The step of a transformer of the same size: a pre-norm GPT on PyTorch's scaled_dot_product_attention.

    ids --embedding + positions--> r;  r <- r + attention(norm(r));  r <- r + mlp(norm(r)) --norm--> tied head

Same width, layers, MLP and head as the Hyena model, heads of 64 channels, and the attention that PyTorch picks for the
device (a fused one that never makes the L x L matrix, where there is one). On request blocks are checkpointed, as in the
paper's comparison of speed at long contexts: computed a second time in the backward pass, in the place of kept.

B batch, L context length, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyena_ds.bench.case import SEED, Case
from hyena_ds.bench.processes import WrongValue
from hyena_ds.bench.side import WholeSide
from hyena_ds.genome.tokenizer import VOCABULARY
from hyena_ds.parallel.devices import Compute

_HEAD_WIDTH = 64
_LEAK = 1e-4


class _Block(nn.Module):
    def __init__(self, width: int, inner_width: int):
        super().__init__()
        self.heads = max(1, width // _HEAD_WIDTH)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out_projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner_width), nn.Linear(inner_width, width)

    def forward(self, r_BLD: Tensor) -> Tensor:
        packed = self.query_key_value(self.attention_norm(r_BLD)).unflatten(-1, (3, self.heads, -1))
        q_BHLd, k_BHLd, v_BHLd = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BHLd = F.scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLd, is_causal=True)
        r_BLD = r_BLD + self.out_projection(mixed_BHLd.transpose(1, 2).flatten(2))
        return r_BLD + self.down(F.gelu(self.up(self.mlp_norm(r_BLD)), approximate="tanh"))


class GPT(nn.Module):
    """(B, L) ids to logits (B, L, V)."""

    def __init__(self, width: int, layers: int, inner_width: int, maximum_context: int, checkpointed: bool):
        super().__init__()
        self.checkpointed = checkpointed
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(maximum_context, width)
        self.blocks = nn.ModuleList(_Block(width, inner_width) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """(B, L) -> logits (B, L, V)."""
        r_BLD = self.embedding(ids_BL) + self.positions.weight[: ids_BL.shape[1]]
        for block in self.blocks:
            r_BLD = checkpoint(block, r_BLD, use_reentrant=False) if self.checkpointed else block(r_BLD)
        return F.linear(self.final_norm(r_BLD), self.embedding.weight)


class TransformerSide(WholeSide):
    """One process with the whole sequence."""

    def __init__(self, compute: Compute, case: Case, checkpointed: bool):
        torch.manual_seed(SEED)
        config = case.config
        model = GPT(config.width, config.layers, config.mlp_width, config.maximum_context, checkpointed)
        super().__init__(compute, case, model)

    def logits(self, ids_BL: Tensor) -> Tensor:
        """(B, L) -> (B, L, V)."""
        return self.model(ids_BL)

    @torch.no_grad()
    def check(self) -> tuple[float, dict[str, Tensor]]:
        """There are no weights to share: what can be wrong is the causal mask."""
        ids_BL, targets_BL = self.micro_batch(self.case.checked_length, 0)
        logits_BLV = self.model(ids_BL)
        changed_BL = ids_BL.clone()
        changed_BL[:, -1] = (changed_BL[:, -1] + 1) % VOCABULARY
        error = (self.model(changed_BL)[:, :-1] - logits_BLV[:, :-1]).abs().max() / logits_BLV.abs().max()
        if float(error) > _LEAK:
            raise WrongValue(f"transformer: the last token changes earlier logits by {float(error):.1e}, wanted none")
        return float(F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten())), {}
