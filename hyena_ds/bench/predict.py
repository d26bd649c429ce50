"""`hyena-ds bench predict`: log-probabilities of all bases of a batch, beside the published code's forward pass.

    ours on P processes: Predictor --> log-probabilities        one process: published model --> logits, without autograd
                 values are compared, then all take turns; each allocator has processes of its own

The published code also gets the allocator's settings that `hyena-ds train` makes, and its best is compared. It is not asked
for the log-probabilities of its logits, which would take it a little longer. Memory is that above the loaded model. The
matrix products of a pass are also timed alone: both sides need them, and a pass that did nothing else would be the fastest.

B batch, L context length, V vocabulary.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hyena_ds.bench.case import SEED, Case, case_of
from hyena_ds.bench.limits import say
from hyena_ds.bench.measure import timed
from hyena_ds.bench.processes import Ranks, WrongValue
from hyena_ds.bench.published_side import build_published, embedding_of, load_standalone
from hyena_ds.bench.report import Column, Row, describe_machine, print_table, shown_spread, spread_of_turns
from hyena_ds.bench.step import check_reference
from hyena_ds.bench.turns import Sides
from hyena_ds.errors import UserError
from hyena_ds.genome.tokenizer import A, T
from hyena_ds.model.backbone import build_model
from hyena_ds.parallel.devices import Compute, peak_memory_gib
from hyena_ds.parallel.layout import Exchange
from hyena_ds.parallel.topology import create_groups
from hyena_ds.predict.predictor import Predictor
from hyena_ds.text import number

Values = NDArray[np.float32]
_PIECE = 1024
"""Tokens of a product."""
_TOLERANCE, _TOLERATED = 1e-4, 65_536
"""Largest difference of a log-probability, in nats, up to so many tokens; from there on it grows with them: the published
code makes positions in float32, ours come from float64, and at 1,000,002 tokens the two differ by 7e-4."""


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """A row for each side and context length."""
    check_reference(options.reference)
    if len(options.batch) != len(options.context_length):
        raise UserError(
            f"--batch: found {len(options.batch)} numbers, wanted {len(options.context_length)}, one for each --context-length"
        )
    rows: list[Row] = []
    machine: dict[str, Any] = {}
    for length, batch in zip(options.context_length, options.batch, strict=True):
        case = case_of(options, length, batch=batch, sequence_parallel=options.sequence_parallel, policy="leanest")
        found, machine = _rows(options, case)
        rows += found
    print_table(_COLUMNS, rows, describe_machine(machine))
    return rows, machine


def _rows(options: argparse.Namespace, case: Case) -> tuple[list[Row], dict[str, Any]]:
    say(f"starting at {case.context_length:,} tokens, batch {case.batch}")
    words = f"hyena-ds, sp {case.sequence_parallel}" if case.sequence_parallel > 1 else "hyena-ds"
    started = {words: partial(_start, "Ours", case, case.sequence_parallel)}
    for allocator in ("tuned", "default") if options.reference is not None else ():
        arguments = {"reference": options.reference, "allocator": allocator}
        started[f"published, {allocator} allocator"] = partial(_start, "Published", case, 1, **arguments)
    shape = {name: getattr(case, name) for name in ("context_length", "batch", "sequence_parallel", "threads")}
    shape |= {"width": case.width, "layers": case.layers}
    rows: dict[str, Row] = {side: {"side": side, "status": "measured", **shape} for side in started}
    with Sides(rows) as sides:
        sides.start({side: start() for side, start in started.items()})
        wanted: Values | None = None
        for side in sides.alive():
            if (answers := sides.ask(side, "values")) is None:
                continue
            wanted = answers[0] if wanted is None else wanted
            check(side, answers[0], wanted)
        turns = sides.take_turns("turn", options.rounds)
        machine: dict[str, Any] = next(
            (found[0] for side in sides.alive() if (found := sides.ask(side, "machine"))), {}
        )
        for side in sides.alive():
            loaded = max(turn["loaded_gib"] for turn in turns[side][0])
            rows[side] |= spread_of_turns(turns[side])
            rows[side]["above_the_model_gib"] = rows[side]["peak_memory_gib"] - loaded
        rows[words]["products_cpu_seconds"] = median(turn["products_cpu_seconds"] for turn in turns[words][0])
    theirs = [row for side, row in rows.items() if side.startswith("published") and row["status"] == "measured"]
    if theirs and rows[words]["status"] == "measured":
        seconds = min(row["cpu_seconds"]["median"] for row in theirs)
        rows[words]["times_faster"] = seconds / rows[words]["cpu_seconds"]["median"]
        least = min(row["above_the_model_gib"] for row in theirs)
        rows[words]["limit"] = seconds / rows[words]["products_cpu_seconds"]
        rows[words]["share_of_memory"] = rows[words]["above_the_model_gib"] / least
    return list(rows.values()), machine


def _start(worker: str, case: Case, processes: int, allocator: str = "tuned", **arguments: Any) -> Ranks:
    name = f"hyena_ds.bench.predict:{worker}"
    return Ranks(name, processes, processes > 1, case.threads, allocator, case=case, **arguments)  # type: ignore[arg-type]


def check(side: str, found_BL: Values, wanted_BL: Values) -> None:
    """Raise WrongValue unless two sides' log-probabilities agree."""
    error = float(np.abs(found_BL - wanted_BL).max())
    tolerance = _TOLERANCE * max(1.0, found_BL.shape[-1] / _TOLERATED)
    if not error <= tolerance:
        raise WrongValue(
            f"predict: a log-probability of {side} differs by {error:.1e}, wanted at most {tolerance:.0e}; nothing was "
            "timed: report it"
        )


class _Forward(ABC):
    """What both sides do with `work`, their forward pass."""

    def __init__(self, compute: Compute, case: Case):
        self.compute = compute
        generator = torch.Generator().manual_seed(SEED)
        self.ids_BL = torch.randint(A, T + 1, (case.batch, case.context_length), generator=generator)
        self.loaded_gib = peak_memory_gib(compute)

    @abstractmethod
    def work(self) -> Tensor:
        """The pass that is timed."""

    def log_probabilities(self) -> Tensor:
        """(B, L - 1), what is compared."""
        return self.work()

    def values(self) -> Values:
        """The compared values. Collective."""
        values: Values = self.log_probabilities().cpu().numpy()
        return values

    def turn(self) -> dict[str, float]:
        """Time a pass. Collective."""
        return {**timed(self.compute, self.work).answer(), "loaded_gib": self.loaded_gib}


class Ours(_Forward):
    """One rank of the Predictor, with filters held where they may be."""

    def __init__(self, compute: Compute, case: Case):
        sp = case.sequence_parallel
        group = create_groups([sp], compute.rank, compute.ranks).get(sp) if sp > 1 else None
        self.predictor = Predictor(build_model(case.config, SEED).to(compute.device), Exchange(group))
        super().__init__(compute, case)

    def work(self) -> Tensor:
        """(B, L - 1). Collective."""
        return self.predictor.log_probabilities(self.ids_BL)

    @torch.no_grad()
    def products(self) -> None:
        """The products of this rank's part of a pass with held filters, a piece of the tokens at a time, which caches hold."""
        tokens, device = self.ids_BL.numel() // self.predictor.exchange.size, self.compute.device
        for name, layer in self.predictor.model.backbone.blocks.named_modules():
            if isinstance(layer, nn.Linear) and "implicit_filter" not in name:
                piece = torch.ones(min(tokens, _PIECE), layer.in_features, device=device)
                product = torch.empty(len(piece), layer.out_features, device=device)
                for _ in range(0, tokens, _PIECE):
                    torch.mm(piece, layer.weight.t(), out=product)

    def turn(self) -> dict[str, float]:
        """Time a pass, then its products. Collective."""
        products = timed(self.compute, self.products).answer()
        return {**super().turn(), "products_cpu_seconds": products["cpu_seconds"]}


class Published(_Forward):
    """The published model of a clone, without autograd."""

    def __init__(self, compute: Compute, case: Case, reference: str):
        module, _ = load_standalone(reference)
        self.model = build_published(module, case).to(compute.device).eval()
        self.embedding_VD = embedding_of(self.model)
        super().__init__(compute, case)

    @torch.no_grad()
    def work(self) -> Tensor:
        """Logits (B, L - 1, V)."""
        return F.linear(self.model(self.ids_BL[:, :-1].to(self.compute.device)), self.embedding_VD)

    def log_probabilities(self) -> Tensor:
        """(B, L - 1)."""
        log_p_BLV = F.log_softmax(self.work(), -1)
        return log_p_BLV.gather(2, self.ids_BL[:, 1:, None].to(log_p_BLV.device))[..., 0]


def _given(row: Row, key: str, form: str) -> str:
    return form.format(row[key]) if key in row else "-"


_COLUMNS: list[Column] = [
    ("side", lambda row: row["side"]),
    ("context", lambda row: f"{row['context_length']:,}"),
    ("batch", lambda row: f"{row['batch']}"),
    ("CPU s: median (spread)", lambda row: shown_spread(row, "cpu_seconds") if "cpu_seconds" in row else row["status"]),
    ("s", lambda row: shown_spread(row, "wall_seconds") if "wall_seconds" in row else "-"),
    ("peak GiB", lambda row: number(row.get("peak_memory_gib"))),
    ("above the model", lambda row: number(row.get("above_the_model_gib"))),
    ("times faster (CPU)", lambda row: _given(row, "times_faster", "{:.2f}")),
    ("products alone, CPU s", lambda row: _given(row, "products_cpu_seconds", "{:.3f}")),
    ("limit", lambda row: _given(row, "limit", "{:.2f}")),
    ("share of memory", lambda row: _given(row, "share_of_memory", "{:.2f}")),
]
