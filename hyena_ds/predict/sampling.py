"""Which base comes next: a function of the logits of A, C, G, T, the settings, and one uniform number. Takes no torch.

    logits --temperature, top-k, top-p--> probabilities --cumulative sum passes the uniform number--> base

Four numbers are quicker in plain Python than in any array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyena_ds.errors import UserError

BASES = "ACGT"
MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Sampling:
    """How bases are drawn."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest base."""
    top_k: int = len(BASES)
    """So many of the likeliest bases are drawn from."""
    top_p: float = 1.0
    """And of these only the likeliest whose probabilities together reach this."""
    seed: int = 0

    def check(self) -> None:
        """Raise UserError for what is out of range."""
        if not 0.0 <= self.temperature < math.inf:
            raise UserError(f"--temperature: found {self.temperature}, wanted 0 (the likeliest base) or more")
        if not 1 <= self.top_k <= len(BASES):
            raise UserError(f"--top-k: found {self.top_k}, wanted 1 to {len(BASES)}, of the bases A, C, G, T")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"--top-p: found {self.top_p}, wanted a probability above 0, to 1")
        if not 0 <= self.seed <= MOST_SEED:
            raise UserError(f"--seed: found {self.seed}, wanted 0 to {MOST_SEED}")

    def uniforms(self, record: int, count: int) -> list[float]:
        """Numbers from 0 to below 1 of one record, a function of seed and record alone; more begin with the same ones."""
        drawn: list[float] = np.random.Generator(np.random.Philox(key=[self.seed, record])).random(count).tolist()
        return drawn

    def choose(self, logits: Sequence[float], uniform: float) -> int:
        """The place of the chosen base in BASES. Raises ValueError where logits are not finite."""
        if not all(map(math.isfinite, logits)):
            raise ValueError(logits)
        order = sorted(range(len(BASES)), key=lambda base: -logits[base])
        if self.temperature == 0.0 or self.top_k == 1:
            return order[0]
        largest = logits[order[0]]
        weights = [math.exp((logits[base] - largest) / self.temperature) for base in order[: self.top_k]]
        if self.top_p < 1.0:
            least, reached = self.top_p * sum(weights), 0.0
            for place, weight in enumerate(weights):
                reached += weight
                if reached >= least:
                    weights = weights[: place + 1]
                    break
        left = uniform * sum(weights)
        for base, weight in zip(order, weights, strict=False):
            left -= weight
            if left < 0.0:
                return base
        return order[len(weights) - 1]
