"""The context schedule: rows of `stages`, and the rungs of `warmup` that come before them.

    warmup {from 64, to 1048576} --rungs: 64, 128, ... 1048576--> RunConfig.schedule <-- rows of `stages`, as they stand

A rung is an ordinary stage, so nothing but `RunConfig.schedule` knows whether a stage was written out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from hyena_ds.config.limits import MOST_CONTEXT, MOST_RANKS, MOST_SEQUENCES, MOST_STEPS, MOST_TOKENS, Bound, Bounded
from hyena_ds.config.loading import require
from hyena_ds.config.policy import PolicyName

PUBLISHED_BATCH = 256
"""Sequences per optimizer step of the published runs."""

_Context = Annotated[int, Bound(1, MOST_CONTEXT)]
_Steps = Annotated[int | None, Bound(1, MOST_STEPS)]
_Tokens = Annotated[int | None, Bound(1, MOST_TOKENS)]
_Sequences = Annotated[int | None, Bound(1, MOST_SEQUENCES)]


@dataclass(frozen=True)
class StageConfig(Bounded):
    """One row of the context warmup."""

    context_length: _Context
    """Tokens of a sequence."""
    steps: _Steps = None
    """Optimizer steps in this stage. Give this or `tokens`."""
    micro_batch_size: _Sequences = None
    """Sequences per forward pass on one data-parallel row; all that a row has, where it has fewer. Left out, it is chosen: the
    largest that divides the row's sequences and holds no more tokens on a rank than one sequence of the run's longest stage does (fewer where the
    stage's activation policy keeps more of each), so that no stage needs more memory than that one."""
    global_batch: _Sequences = None
    """Sequences per optimizer step over all ranks. Give this or `global_batch_tokens`."""
    global_batch_tokens: Annotated[int | None, Bound(-MOST_TOKENS, MOST_TOKENS)] = None
    """Tokens per optimizer step over all ranks."""
    sequence_parallel: Annotated[int, Bound(1, MOST_RANKS)] = 1
    """Ranks over which every sequence is cut; on so many ranks that a step has fewer sequences than rows, as many more as give
    each row one."""
    tokens: _Tokens = None
    """Tokens of this stage, over all ranks, rounded up to whole optimizer steps."""
    activation_policy: PolicyName | None = None
    """What a block keeps for backward in this stage; left out, the run's `activation_policy`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for this, other in (("steps", "tokens"), ("global_batch", "global_batch_tokens")):
            one = (getattr(self, this) is None) != (getattr(self, other) is None)
            require(one, this, f"wanted exactly one of {this} and {other}")
        if self.global_batch_tokens is not None:
            require(
                self.global_batch_tokens > 0 and self.global_batch_tokens % self.context_length == 0,
                "global_batch_tokens",
                f"found {self.global_batch_tokens}, wanted a multiple of context_length {self.context_length}",
            )
        require(
            self.sequences <= MOST_SEQUENCES,
            "global_batch_tokens",
            f"found {self.global_batch_tokens}, {self.sequences} sequences a step, wanted at most {MOST_SEQUENCES:,}",
        )
        require(
            self.context_length % self.sequence_parallel == 0,
            "context_length",
            f"found {self.context_length}, which sequence_parallel {self.sequence_parallel} does not divide; "
            "choose a multiple",
        )
        require(
            self.sequence_parallel == 1 or self.local_length >= 2,
            "sequence_parallel",
            f"found {self.sequence_parallel}, which leaves fewer than 2 tokens a rank; lower it",
        )

    @property
    def sequences(self) -> int:
        """Sequences per optimizer step."""
        if self.global_batch is not None:
            return self.global_batch
        return (self.global_batch_tokens or 0) // self.context_length

    @property
    def local_length(self) -> int:
        """Tokens of a sequence on one rank."""
        return self.context_length // self.sequence_parallel

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimizer step."""
        return self.sequences * self.context_length

    @property
    def step_count(self) -> int:
        """Optimizer steps, whichever key says them."""
        return self.steps if self.steps is not None else -(-(self.tokens or 0) // self.tokens_per_step)

    @property
    def total_tokens(self) -> int:
        """Tokens that the stage really trains on."""
        return self.step_count * self.tokens_per_step


@dataclass(frozen=True)
class WarmupConfig(Bounded):
    """A ladder of context lengths, each twice the one before. Its rungs come before the rows of `stages`."""

    from_: _Context
    """Context length of the first rung."""
    to: Annotated[int, Bound(-MOST_CONTEXT, MOST_CONTEXT)]
    """Context length of the last rung, which lasts as long as the others."""
    double_every: _Steps = None
    """Optimizer steps on every rung. Give this or `double_every_tokens`."""
    double_every_tokens: _Tokens = None
    """Tokens on every rung, over all ranks, rounded up to whole optimizer steps."""
    global_batch: _Sequences = None
    """Sequences per optimizer step on every rung, as in the paper. Give this, or `global_batch_tokens`, or neither for the
    published 256."""
    global_batch_tokens: _Tokens = None
    """Tokens per optimizer step on every rung."""
    tokens_per_rank: Annotated[int | None, Bound(2, MOST_CONTEXT)] = None
    """A rung longer than this is cut over as many ranks, a power of two, as it takes. Left out, no rung is cut."""
    activation_policy: PolicyName | None = None
    """What a block keeps for backward on the rungs; left out, the run's `activation_policy`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths = self.lengths
        require(
            len(lengths) > 1 and lengths[-1] == self.to,
            "to",
            f"found {self.to}, wanted {self.from_} doubled once or more, as {lengths[-1]} or {2 * lengths[-1]} is; choose "
            "one of them, and put another length into a row of stages",
        )
        for this, other in (("double_every", "double_every_tokens"), ("global_batch", "global_batch_tokens")):
            both = getattr(self, this) is not None and getattr(self, other) is not None
            require(not both, this, f"found {this} and {other}, wanted one of them; leave one out")
        require(
            self.double_every is not None or self.double_every_tokens is not None,
            "double_every",
            "found neither double_every nor double_every_tokens, wanted the steps or the tokens of a rung",
        )
        require(
            self.global_batch_tokens is None or self.global_batch_tokens % self.to == 0,
            "global_batch_tokens",
            f"found {self.global_batch_tokens}, wanted a multiple of the longest rung, {self.to}",
        )
        for length in lengths:
            require(
                length % self._ranks_for(length) == 0,
                "tokens_per_rank",
                f"found {self.tokens_per_rank}, which cuts the rung of {length} tokens over {self._ranks_for(length)} "
                "ranks, which do not divide it; raise it, or choose a `from` that is a power of two",
            )

    @property
    def lengths(self) -> list[int]:
        """Context lengths of the rungs."""
        lengths = [self.from_]
        while 2 * lengths[-1] <= self.to:
            lengths.append(2 * lengths[-1])
        return lengths

    @property
    def rungs(self) -> tuple[StageConfig, ...]:
        """The ladder, written out."""
        neither = self.global_batch is None and self.global_batch_tokens is None
        return tuple(
            StageConfig(
                context_length=length,
                steps=self.double_every,
                tokens=self.double_every_tokens,
                global_batch=PUBLISHED_BATCH if neither else self.global_batch,
                global_batch_tokens=self.global_batch_tokens,
                sequence_parallel=self._ranks_for(length),
                activation_policy=self.activation_policy,
            )
            for length in self.lengths
        )

    def _ranks_for(self, length: int) -> int:
        """The fewest ranks, a power of two, that hold a rung with at most `tokens_per_rank` tokens each."""
        ranks = 1
        while self.tokens_per_rank is not None and length > ranks * self.tokens_per_rank:
            ranks *= 2
        return ranks
