"""What a model says of alternatives at their sites: log-likelihood ratio, and how far its states move.

    sites and changes of one window --SharedPrefix--> hidden states of both sequences --> a row of numbers a change

LLR    sum of log-probabilities of the alternative's bases from q - 1 to the window's end, less the reference's, in nats;
       all columns of the head count, targets that are not A C G T do not
JSD    of the next base after q, over A C G T, in bits
COS    1 - cosine of the final hidden states at q           L2    their Euclidean distance

B changes, S tokens of an end, m = S + 1, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.genome.tokenizer import A, T
from hyena_ds.ops.short_convolution import HALO
from hyena_ds.predict.haplotypes import Change, Site, Strand, WindowRule
from hyena_ds.predict.predictor import Predictor
from hyena_ds.predict.shared_prefix import EndFilters, Ends, SharedPrefix

MEASURES = ("llr", "jsd", "cos", "l2")
_TOKENS_AT_ONCE = 1 << 14
"""Tokens of the ends that go through the model together on a CPU: four ends of the usual length, whose tensors stay small."""
_DEVICE_TOKENS_AT_ONCE = 1 << 19


class Placed(NamedTuple):
    """A change and where it is computed."""

    change: Change
    site: Site


class Effects:
    """Computes changes window by window; the last window is kept for the next call. Collective over a sequence group."""

    def __init__(self, predictor: Predictor, rule: WindowRule, batch: int | None = None):
        """`batch` is how many ends go through the model of a rank together."""
        self._predictor, self._rule, self._batch = predictor, rule, batch
        self._filters = EndFilters(predictor)
        self._kept: tuple[tuple[Strand, int, int], SharedPrefix] | None = None

    def of(self, strand: Strand, placed: Sequence[Placed], kept_from: int) -> Tensor:
        """(B, 4) float64 of MEASURES, for changes that share a window, none before the position `kept_from`."""
        window = placed[0].site.window
        prefix = self._prefix(strand, window, kept_from)
        found = torch.zeros(len(placed), len(MEASURES), dtype=torch.float64)
        groups = defaultdict[tuple[bool, int], list[int]](list)
        begins = []
        for number, (_, site) in enumerate(placed):
            # A halo is whole or there is none: the first tokens of a window are computed from its start.
            begins.append(site.first - window if site.first - window >= HALO else 0)
            groups[begins[-1] == 0, site.end - window - begins[-1]].append(number)
        for (_, length), numbers in groups.items():
            chosen, begin_B = [placed[number] for number in numbers], [begins[number] for number in numbers]
            found[numbers] = self._of_a_length(prefix, strand, chosen, begin_B, length)
        return found

    def _of_a_length(
        self, prefix: SharedPrefix, strand: Strand, placed: Sequence[Placed], begins: Sequence[int], length: int
    ) -> Tensor:
        starts = [placed[0].site.window + begin for begin in begins]
        rows = [each.change.read(strand, at, at + length) for each, at in zip(placed, starts, strict=True)]
        ends_BS = torch.from_numpy(np.stack(rows).astype(np.int64))
        at_B = torch.tensor([each.site.first - at for each, at in zip(placed, starts, strict=True)])
        head_VD = self._predictor.model.backbone.embedding.weight
        most = self.ends_at_once(length)
        return prefix.score(begins, ends_BS, lambda ends: measures(ends, at_B[ends.numbers], head_VD), most).cpu()

    def ends_at_once(self, length: int) -> int:
        """Ends of so many tokens that a rank computes together."""
        return self._batch or max(1, self._tokens_at_once() // length)

    def _prefix(self, strand: Strand, window: int, kept_from: int) -> SharedPrefix:
        wanted = (strand, window, kept_from)
        if self._kept is None or self._kept[0] != wanted:
            self._kept = None  # not beside the next
            tokens = torch.from_numpy(strand.read(window, window + self._rule.length).astype(np.int64))
            self._kept = wanted, SharedPrefix(self._predictor, tokens, kept_from - window, self._filters)
        return self._kept[1]

    def _tokens_at_once(self) -> int:
        device = self._predictor.model.backbone.embedding.weight.device
        return _TOKENS_AT_ONCE if device.type == "cpu" else _DEVICE_TOKENS_AT_ONCE


def measures(ends: Ends, at_B: Tensor, head_VD: Tensor) -> Tensor:
    """(B, 4) float64 of MEASURES; `at` is the index of the first token of each end that differs from the reference."""
    device = ends.hidden_BmD.device
    rows_B = torch.arange(len(at_B), device=device)
    at_B = at_B.to(device)
    sums, next_base, state = [], [], []
    for hidden_BmD, ids_BS in ((ends.hidden_BmD, ends.ids_BS), (ends.reference_BmD, ends.reference_ids_BS)):
        log_p_BmV = F.log_softmax(F.linear(hidden_BmD, head_VD), -1)
        log_p_BS = log_p_BmV[:, :-1].gather(2, ids_BS.unsqueeze(2)).squeeze(2).double()
        scored_BS = (ids_BS >= A) & (ids_BS <= T)
        if ends.at_start:
            scored_BS[:, 0] = False
        sums.append(torch.where(scored_BS, log_p_BS, 0.0).sum(1))
        next_base.append(log_p_BmV[rows_B, at_B + 1, A : T + 1].double().softmax(-1))
        state.append(hidden_BmD[rows_B, at_B + 1].double())
    cosine_B = (1.0 - F.cosine_similarity(state[0], state[1], dim=-1)).clamp_min(0.0)
    distance_B = (state[0] - state[1]).norm(dim=-1)
    return torch.stack((sums[0] - sums[1], jensen_shannon(*next_base), cosine_B, distance_B), 1)


def jensen_shannon(p_BV: Tensor, q_BV: Tensor) -> Tensor:
    """The divergence of distributions in bits, (B,)."""
    middle_BV = (p_BV + q_BV) / 2
    total = torch.special.entr(middle_BV) - (torch.special.entr(p_BV) + torch.special.entr(q_BV)) / 2
    return total.sum(-1).clamp_min(0.0) / math.log(2)
