"""What is measured: one side of a benchmark, in plain values that travel to its processes. Imports no torch.

A side is one program on its own processes: this trainer's step, the published code's, a transformer's, the engine's.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from hyena_ds.config.loading import Invalid
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import KEPT_UNITS
from hyena_ds.cost.shape import StepShape
from hyena_ds.errors import UserError

Allocator = Literal["tuned", "default"]

SEED = 2222
PUBLISHED_SHIFT = 0.05
"""The filter's shift in the published standalone code; every side uses it, so that weights can be shared."""
CHECKED_LENGTH = 1024
"""Values are checked at this context length, or at the case's when it is shorter."""
_OF_THE_MODEL = ("maximum_context", "width", "layers")
_OF_A_RUN = ("batch", "accumulation", "sequence_parallel", "policy", "precision", "allocator", "threads", "kernels")
STANDALONE = "standalone_hyenadna.py"
"""The file of a clone of HazyResearch/hyena-dna that holds the whole published model."""


@dataclass(frozen=True)
class Case(StepShape):
    """A step of one sequence group, and how its processes run."""

    allocator: Allocator = "tuned"
    threads: int = 1

    @property
    def checked_length(self) -> int:
        """A short context length that the ranks divide."""
        return min(self.context_length, CHECKED_LENGTH // self.sequence_parallel * self.sequence_parallel)

    def columns(self) -> dict[str, Any]:
        """What a row says of the case."""
        of_model = {name: getattr(self.config, name) for name in _OF_THE_MODEL}
        return {"context_length": self.context_length, **of_model, **{name: getattr(self, name) for name in _OF_A_RUN}}

    def check(self) -> None:
        """Raise UserError unless the numbers fit each other."""
        P, L = self.sequence_parallel, self.context_length
        if L < 2 * P or L % P:
            raise UserError(f"--context-length: found {L}, wanted a multiple of {P} ranks with 2 tokens each or more")
        if self.width % P:
            raise UserError(f"--width: found {self.width}, wanted a multiple of --sequence-parallel {P}")
        if self.config.maximum_context < L:
            raise UserError(
                f"--maximum-context: found {self.config.maximum_context}, wanted at least the context length {L}; "
                "leave it out to use the context length"
            )


def case_of_columns(known: Mapping[str, Any]) -> Case:
    """The case that a row tells, other columns aside; width 128 and 2 layers where it does not say.

    Without dropout: a benchmark compares values. Raises Invalid for numbers that no model has.
    """
    of_model = {"width": 128, "layers": 2} | {name: known[name] for name in _OF_THE_MODEL if name in known}
    model = ModelConfig(**of_model, filter_shift=PUBLISHED_SHIFT, embedding_dropout=0.0)
    return Case(model, known["context_length"], **{name: known[name] for name in _OF_A_RUN if name in known})


def case_of(options: argparse.Namespace, length: int, **chosen: Any) -> Case:
    """A checked case of `length` tokens, of what was `chosen` and else of the options that a case has."""
    known = {**vars(options), **chosen, "context_length": length}
    known["maximum_context"] = known.get("maximum_context") or length
    for name in ("context_length", "width", "layers", "batch", "accumulation", "sequence_parallel", "threads"):
        if known.get(name, 1) < 1:
            raise UserError(f"--{name.replace('_', '-')}: found {known[name]}, wanted at least 1")
    try:
        case = case_of_columns(known)
    except Invalid as problem:
        raise UserError(f"bench: {problem}") from None
    case.check()
    return case


@dataclass(frozen=True)
class Side:
    """One program in its own processes."""

    kind: Literal["hyena-ds", "hyena-ds engine", "unrelated jobs", "published", "transformer"]
    case: Case
    reference: str | None = None
    """The clone of the published code."""
    checkpointed: bool = False
    """Whether a Transformer computes its blocks a second time in the backward pass, in the place of keeping them."""

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
        model = replace(self.case.config, maximum_context=length)
        return replace(self.case, sequence_parallel=1, context_length=length, config=model)

    @property
    def label(self) -> str:
        """The side's name in a table."""
        case = self.case
        words: list[str] = [self.kind]
        if self.kind.startswith("hyena-ds"):
            words.append(case.policy)
        if self.kind.startswith("hyena-ds") and case.kernels != "portable":
            words.append(case.kernels)
        if self.kind == "unrelated jobs":
            words = [f"{self.processes} unrelated jobs of {case.local_length:,}"]
        elif self.processes > 1:
            words.append(f"sp {self.processes}")
        if self.checkpointed:
            words.append("checkpointed")
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
        case = self.case
        tokens = case.batch * case.context_length
        if self.kind in ("published", "transformer"):
            kilobytes = {"published": 38.0, "transformer": 20.0}[self.kind] * (
                1.4 if case.allocator == "tuned" else 1.0
            )
            return 0.4 + tokens * kilobytes * 1e3 * case.width * case.layers / 256 / 2**30
        unit = tokens * 4.0 * case.width / 2**30
        return (
            0.4 * self.processes
            + unit * (case.layers * KEPT_UNITS[case.policy] + 6)
            + min(3 * unit, 1.0 * self.processes)
        )

    def growth(self, length: int) -> float:
        """How many times as long a step should take as a pass of `length` tokens. Attention grows with the square."""
        ratio = self.process_case.context_length / length
        return self.case.accumulation * (ratio**2 if self.kind == "transformer" else 1.3 * ratio)
