"""`hyena-ds bench variants`: a further ALT of a window beside computing its whole sequence again.

    random bases, a random model --one pass--> SharedPrefix --score--> log-likelihood of an ALT's end
                                 --a forward pass of left + right bases an ALT--> the same, and the check

Both sides are one process, take turns, and give the log-likelihood of the window; they have to agree before they are timed.

B ALTs, L tokens of the window, S tokens of an end.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.bench.case import SEED
from hyena_ds.bench.measure import machine, start_process, timed
from hyena_ds.bench.processes import WrongValue
from hyena_ds.bench.report import Column, Row, print_table, shown_spread, spread
from hyena_ds.bench.turns import Turn, interleaved
from hyena_ds.config.model import ModelConfig
from hyena_ds.genome.tokenizer import A, T
from hyena_ds.model.backbone import build_model
from hyena_ds.predict.predictor import Predictor
from hyena_ds.predict.shared_prefix import EndFilters, Ends, SharedPrefix
from hyena_ds.text import number

_TOLERANCE = 1e-5


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """A row for computing again, and one for a further ALT."""
    compute = start_process(False, options.threads)
    left, right, count = options.left, options.right, options.alts
    model = build_model(ModelConfig(options.width, options.layers, left + right), SEED).to(compute.device)
    predictor = Predictor(model)
    window_L = torch.randint(A, T + 1, (left + right,), generator=torch.Generator().manual_seed(SEED))
    ends_BS = window_L[left:].repeat(count, 1)
    ends_BS[:, 0] = A + (ends_BS[:, 0] - A + 1 + torch.arange(count) % 3) % (T + 1 - A)
    head_VD = model.backbone.embedding.weight
    passed = timed(compute, lambda: SharedPrefix(predictor, window_L, left, EndFilters(predictor)))
    prefix: SharedPrefix = passed.result

    def again() -> Tensor:
        whole_1L = torch.cat((window_L[:left], ends_BS[0])).unsqueeze(0)
        return predictor.log_probabilities(whole_1L)[0, left - 1 :].double().sum().cpu()

    def further() -> Tensor:
        return prefix.score([left] * count, ends_BS, lambda ends: log_likelihoods(ends, head_VD), count)[:, 0].cpu()

    check(again(), further()[0])
    turns = interleaved(
        {"again": lambda: [timed(compute, again).answer()], "further": lambda: [timed(compute, further).answer()]},
        options.rounds,
    )
    shape = {"left": left, "right": right, "width": options.width, "layers": options.layers, "threads": options.threads}
    rows: list[Row] = [
        {"side": "computed again", "status": "measured", **shape, **_times(turns["again"], 1)},
        {"side": "a further ALT", "status": "measured", **shape, **_times(turns["further"], count)},
    ]
    for row in rows:
        row["times_cheaper"] = rows[0]["wall_seconds"]["median"] / row["wall_seconds"]["median"]
    rows[1] |= {"alts_at_once": count, "pass_seconds": passed.wall_seconds}
    print_table(_COLUMNS, rows, f"the pass that keeps what ALTs share: {number(passed.wall_seconds)} s, once a window")
    return rows, machine()


def log_likelihoods(ends: Ends, head_VD: Tensor) -> Tensor:
    """(B, 1): log-likelihood of each end's tokens in nats."""
    log_p_BmV = F.log_softmax(F.linear(ends.hidden_BmD, head_VD), -1)
    return log_p_BmV[:, :-1].gather(2, ends.ids_BS.unsqueeze(2)).double().sum(1)


def check(wanted: Tensor, found: Tensor) -> None:
    """Raise WrongValue unless both sides give one log-likelihood."""
    error = float((found - wanted).abs() / wanted.abs())
    if not error <= _TOLERANCE:
        raise WrongValue(
            f"variants: the log-likelihood of an ALT is off by {error:.1e} of itself, wanted at most {_TOLERANCE:.0e}; nothing "
            "was timed: report it"
        )


def _times(turns: list[Turn], count: int) -> Row:
    return {
        "wall_seconds": spread(answer["wall_seconds"] / count for (answer,) in turns),
        "cpu_seconds": spread(answer["cpu_seconds"] / count for (answer,) in turns),
        "peak_memory_gib": turns[-1][0]["peak_memory_gib"],
    }


_COLUMNS: list[Column] = [
    ("one ALT", lambda row: row["side"]),
    ("left", lambda row: f"{row['left']:,}"),
    ("right", lambda row: f"{row['right']:,}"),
    ("seconds", lambda row: shown_spread(row, "wall_seconds")),
    ("CPU s", lambda row: number(row["cpu_seconds"]["median"])),
    ("times cheaper", lambda row: number(row["times_cheaper"])),
]
