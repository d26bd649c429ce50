"""`hyena-ds bench generate`: what a base costs that `hyena-ds generate` draws, beside a forward pass for each.

    one process: generation of some lengths in turn --> seconds a base, growth with the length
                 forward passes at five places of the longest prompt's generation, in the same turns --> seconds a base

Logits at these places are compared first. A forward pass for every base is not run: its seconds are integrated over the
five (trapezoids). Its filters are held, so it is the quickest recomputation that there is here.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from hyena_ds.bench.case import PUBLISHED_SHIFT, SEED
from hyena_ds.bench.limits import say
from hyena_ds.bench.measure import timed
from hyena_ds.bench.processes import Ranks, WrongValue
from hyena_ds.bench.report import Column, Row, describe_machine, print_table, shown_spread, spread_of_turns
from hyena_ds.bench.turns import Turn, interleaved
from hyena_ds.config.loading import Invalid
from hyena_ds.config.model import ModelConfig
from hyena_ds.errors import UserError
from hyena_ds.genome.tokenizer import A, T
from hyena_ds.model.backbone import build_model
from hyena_ds.parallel.devices import Compute
from hyena_ds.predict.decoder import Decoder
from hyena_ds.predict.generation import generate
from hyena_ds.predict.predictor import Predictor
from hyena_ds.predict.prefill import prefill
from hyena_ds.predict.prompts import Prompt
from hyena_ds.predict.sampling import Sampling
from hyena_ds.text import number

_PLACES = 5
_TOLERANCE = 1e-4
"""Largest difference of a logit."""


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """A row for the prompt, beside recomputation, and one for each length from a prompt of one base."""
    lengths = sorted(set(options.length))
    for name in ("width", "layers", "threads", "prompt_length", "tokens"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: found {getattr(options, name)}, wanted at least 1")
    if lengths[0] < 1:
        raise UserError(f"--length: found {lengths[0]}, wanted at least 1")
    prompt, tokens = options.prompt_length, options.tokens
    places = [prompt + tokens * place // (_PLACES - 1) for place in range(_PLACES)]
    runs = [(prompt, tokens), *((1, length) for length in lengths)]
    arguments = {"width": options.width, "layers": options.layers, "maximum": max(sum(each) for each in runs)}
    say(f"starting one process at width {options.width}, {options.layers} layers")
    with Ranks("hyena_ds.bench.generate:Generator", 1, False, options.threads, "tuned", **arguments) as ranks:
        error, largest = ranks.ask("check", prompt=prompt, tokens=tokens, places=places)[0]
        asks = {("generate", *each): partial(ranks.ask, "generate", prompt=each[0], tokens=each[1]) for each in runs}
        asks |= {("recompute", place, 1): partial(ranks.ask, "recompute", length=place) for place in places}
        turns = interleaved(asks, options.rounds)
        machine = ranks.machine()
    rows = [_row(options, *each, turns[("generate", *each)]) for each in runs]
    passes = [spread_of_turns(turns[("recompute", place, 1)])["wall_seconds"] for place in places]
    rows[0] |= _recomputation(places, [each["median"] for each in passes], rows[0]["seconds_a_base"])
    rows[0] |= {"largest_difference_of_a_logit": error, "largest_logit": largest}
    for row in rows[1:]:
        row["times_the_shortest"] = row["seconds_a_base"] / rows[1]["seconds_a_base"]
    print_table(
        _COLUMNS,
        rows,
        f"recomputation: one forward pass at {', '.join(f'{place:,}' for place in places)} bases, "
        f"{', '.join(number(each['median']) for each in passes)} s, integrated over the positions between",
        f"logits of both at these places differ by {error:.0e} at most; the largest is {number(largest)}",
        describe_machine(machine),
    )
    return rows, machine


class Generator:
    """One process with a random model."""

    def __init__(self, compute: Compute, width: int, layers: int, maximum: int):
        try:
            config = ModelConfig(
                width=width,
                layers=layers,
                maximum_context=max(2, maximum),
                filter_shift=PUBLISHED_SHIFT,
                embedding_dropout=0.0,
            )
        except Invalid as problem:
            raise UserError(f"bench: {problem}") from None
        self.compute = compute
        self.predictor = Predictor(build_model(config, SEED).to(compute.device))
        self.predictor.filters(maximum)
        generator = torch.Generator().manual_seed(SEED)
        self.token_ids_L = torch.randint(A, T + 1, (maximum,), generator=generator)

    def check(self, prompt: int, tokens: int, places: list[int]) -> tuple[float, float]:
        """(largest difference of a logit between decoding and recomputation, largest logit); where they differ, WrongValue."""
        ids = self.token_ids_L
        prefix = prefill(self.predictor, ids[:prompt], tokens)
        assert prefix is not None
        decoding = Decoder(self.predictor, tokens).start([prefix])
        worst = largest = 0.0
        for length in range(prompt, prompt + tokens):
            if length in places:
                wanted_V = self.predictor.logits(ids[None, :length])[0, -1]
                largest = max(largest, float(wanted_V.abs().max()))
                worst = max(worst, float((decoding.logits_BV[0] - wanted_V).abs().max()))
            if length + 1 < prompt + tokens:
                decoding.step(ids[length : length + 1].to(self.compute.device))
        if not worst <= _TOLERANCE:
            raise WrongValue(
                f"generate: a logit differs by {worst:.1e} from recomputation, wanted at most {_TOLERANCE:.0e}; nothing was "
                "timed: report it"
            )
        return worst, largest

    def generate(self, prompt: int, tokens: int) -> dict[str, float]:
        """Time bases after a prompt, its prefill included."""
        prompts = [Prompt(0, "bench", self.token_ids_L[:prompt].to(torch.uint8).numpy())]
        return timed(self.compute, lambda: list(generate(self.predictor, prompts, tokens, Sampling(), 1))).answer()

    def recompute(self, length: int) -> dict[str, float]:
        """Time one forward pass."""
        return timed(self.compute, lambda: self.predictor.logits(self.token_ids_L[None, :length])).answer()


def _row(options: argparse.Namespace, prompt: int, tokens: int, turns: list[Turn]) -> Row:
    row: Row = {"side": f"{tokens:,} bases after {prompt:,}", "status": "measured", "width": options.width}
    row |= {"layers": options.layers, "prompt": prompt, "tokens": tokens, "threads": options.threads}
    row |= spread_of_turns(turns)
    row["seconds_a_base"] = row["wall_seconds"]["median"] / tokens
    row["cpu_seconds_a_base"] = row["cpu_seconds"]["median"] / tokens
    return row


def _recomputation(places: list[int], seconds: list[float], ours: float) -> Row:
    """Seconds a base of a forward pass for each, and how many times ours that is."""
    parts = zip(pairwise(places), pairwise(seconds), strict=True)
    area = sum((last - first) * sum(ends) / 2 for (first, last), ends in parts)
    each = area / (places[-1] - places[0])
    forwards = dict(zip(map(str, places), seconds, strict=True))
    return {"recomputed_seconds_a_base": each, "times_faster": each / ours, "forward_seconds": forwards}


def _micro(seconds: float) -> str:
    return number(seconds * 1e6)


def _given(row: Row, key: str, form: str) -> str:
    return form.format(row[key]) if key in row else "-"


_COLUMNS: list[Column] = [
    ("generated", lambda row: row["side"]),
    ("s: median (spread)", lambda row: shown_spread(row, "wall_seconds")),
    ("µs a base", lambda row: _micro(row["seconds_a_base"])),
    ("CPU µs a base", lambda row: _micro(row["cpu_seconds_a_base"])),
    ("recomputed, s a base", lambda row: _given(row, "recomputed_seconds_a_base", "{:.3g}")),
    ("times faster", lambda row: _given(row, "times_faster", "{:,.0f}")),
    ("times the shortest's cost", lambda row: _given(row, "times_the_shortest", "{:.2f}")),
    ("peak GiB", lambda row: number(row["peak_memory_gib"])),
]
