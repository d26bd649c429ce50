"""What is measured: one side of a benchmark, in plain values that travel to its processes. Imports no torch.

A side is one program on its own processes: this trainer's step, the published code's, a transformer's, the engine's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from hyena_ds.config.loading import Invalid
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import POLICIES, Policy, PolicyName
from hyena_ds.cost.shape import StepShape
from hyena_ds.errors import UserError

Precision = Literal["float32", "bfloat16"]
Allocator = Literal["tuned", "default"]

SEED = 2222
PUBLISHED_SHIFT = 0.05
"""The filter's shift in the published standalone code; every side uses it, so that weights can be shared."""
CHECKED_LENGTH = 1024
"""Values are checked at this context length, or at the case's when it is shorter."""
STANDALONE = "standalone_hyenadna.py"
"""The file of a clone of HazyResearch/hyena-dna that holds the whole published model."""


@dataclass(frozen=True)
class Case:
    """A model, a batch, and how the step runs."""

    context_length: int
    maximum_context: int
    width: int = 128
    layers: int = 2
    batch: int = 1
    accumulation: int = 1
    sequence_parallel: int = 1
    policy: PolicyName = "balanced"
    precision: Precision = "float32"
    allocator: Allocator = "tuned"
    threads: int = 1

    @property
    def local_length(self) -> int:
        """Tokens of a rank's slice."""
        return self.context_length // self.sequence_parallel

    @property
    def tokens(self) -> int:
        """Tokens of an optimizer step, over all ranks."""
        return self.batch * self.accumulation * self.context_length

    @property
    def activation_policy(self) -> Policy:
        """The activation policy by its name."""
        return POLICIES[self.policy]

    @property
    def checked_length(self) -> int:
        """A short context length that the ranks divide."""
        return min(self.context_length, CHECKED_LENGTH // self.sequence_parallel * self.sequence_parallel)

    def model(self) -> ModelConfig:
        """Without dropout: a benchmark compares values."""
        return ModelConfig(
            width=self.width,
            layers=self.layers,
            maximum_context=self.maximum_context,
            filter_shift=PUBLISHED_SHIFT,
            embedding_dropout=0.0,
        )

    def shape(self) -> StepShape:
        """What is counted of it; the engine runs it with ZeRO stage 1."""
        return StepShape(
            self.model(),
            self.context_length,
            self.batch,
            self.accumulation,
            1,
            self.sequence_parallel,
            self.policy,
            self.precision,
        )

    def check(self) -> None:
        """Raise UserError unless the numbers fit each other."""
        for name in ("context_length", "width", "layers", "batch", "accumulation", "sequence_parallel", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')}: found {getattr(self, name)}, wanted at least 1")
        P, L = self.sequence_parallel, self.context_length
        if L < 2 * P or L % P:
            raise UserError(f"--context-length: found {L}, wanted a multiple of {P} ranks with 2 tokens each or more")
        if self.width % P:
            raise UserError(f"--width: found {self.width}, wanted a multiple of --sequence-parallel {P}")
        if self.maximum_context < L:
            raise UserError(
                f"--maximum-context: found {self.maximum_context}, wanted at least the context length {L}; "
                "leave it out to use the context length"
            )
        try:
            self.model()
        except Invalid as problem:
            raise UserError(f"bench: {problem}") from None


def case_of(options: argparse.Namespace, length: int, **chosen: Any) -> Case:
    """A checked case of `length` tokens, of what was `chosen` and else of the options that a case has."""
    known = {name: value for name, value in vars(options).items() if name in Case.__dataclass_fields__} | chosen
    case = Case(**{**known, "context_length": length, "maximum_context": known.get("maximum_context") or length})
    case.check()
    return case


def cases_of_a_part(options: argparse.Namespace) -> Iterator[Case]:
    """A case for each context length and allocator of `bench convolution` and `bench exchange`."""
    for length, allocator in product(options.context_length, options.allocator):
        yield case_of(options, length, allocator=allocator)


@dataclass(frozen=True)
class Side:
    """One program in its own processes."""

    kind: Literal["hyena-ds", "hyena-ds engine", "unrelated jobs", "published", "transformer"]
    case: Case
    reference: str | None = None
    """The clone of the published code."""

    @property
    def processes(self) -> int:
        """Processes that the side runs as."""
        return self.case.sequence_parallel

    @property
    def grouped(self) -> bool:
        """Whether its processes talk to each other."""
        return self.kind == "hyena-ds engine" or (self.kind == "hyena-ds" and self.processes > 1)

    @property
    def worker(self) -> str:
        """Module and class that runs in each process."""
        return {
            "hyena-ds": "hyena_ds.bench.hyena_side:HyenaSide",
            "hyena-ds engine": "hyena_ds.bench.engine_side:EngineSide",
            "unrelated jobs": "hyena_ds.bench.hyena_side:HyenaSide",
            "published": "hyena_ds.bench.published_side:PublishedSide",
            "transformer": "hyena_ds.bench.transformer_side:TransformerSide",
        }[self.kind]

    @property
    def process_case(self) -> Case:
        """The case as each process sees it: unrelated jobs are single processes of a part of the length."""
        if self.kind != "unrelated jobs":
            return self.case
        length = self.case.local_length
        return replace(self.case, sequence_parallel=1, context_length=length, maximum_context=length)

    @property
    def label(self) -> str:
        """The side's name in a table."""
        case = self.case
        words: list[str] = [self.kind]
        if self.kind.startswith("hyena-ds"):
            words.append(case.policy)
        if self.kind == "unrelated jobs":
            words = [f"{self.processes} unrelated jobs of {case.local_length:,}"]
        elif self.processes > 1:
            words.append(f"sp {self.processes}")
        if case.precision != "float32":
            words.append(case.precision)
        if case.allocator != "tuned":
            words.append(f"{case.allocator} allocator")
        return ", ".join(words)

    def memory_gib(self) -> float:
        """A simple estimate of all its processes' peak, to see what fits before anything is started.

        A process without a model holds 0.4 GiB. The published code keeps 38 KB a token at width 128 and 2 layers, and with
        an allocator that gives nothing back reaches 53 KB (measured at 262,144 tokens); the transformer keeps about half
        of that. Ours: the residual and what the policy keeps, in units of width x 4 bytes a token and layer
        (config/policy.py), 6 units for the layer that is at work, and 3 more for its transforms and what is exchanged, whose
        groups of channels hold no more than 1 GiB a process however long the context.
        """
        case, policy = self.case, self.case.activation_policy
        tokens = case.batch * case.context_length
        if self.kind in ("published", "transformer"):
            kilobytes = {"published": 38.0, "transformer": 20.0}[self.kind] * (
                1.4 if case.allocator == "tuned" else 1.0
            )
            return 0.4 + tokens * kilobytes * 1e3 * case.width * case.layers / 256 / 2**30
        units = 1 + policy.keep_middle + 2 * policy.keep_convolution + 3 * policy.keep_projections
        units += 3 * policy.keep_spectra + 4 * policy.keep_inner + policy.keep_filter
        unit = tokens * 4.0 * case.width / 2**30
        return 0.4 * self.processes + unit * (case.layers * units + 6) + min(3 * unit, 1.0 * self.processes)

    def growth(self, length: int) -> float:
        """How many times as long a step should take as a pass of `length` tokens. Attention grows with the square."""
        ratio = self.process_case.context_length / length
        return self.case.accumulation * (ratio**2 if self.kind == "transformer" else 1.3 * ratio)
