"""What the ranks found together --> verdicts: whether they met, how fast they exchange, whether a cut sequence is a whole one."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from hyena_ds.doctor.launch import Heard
from hyena_ds.doctor.verdict import OK, WARNING, WRONG, Verdict
from hyena_ds.text import counted

SLOW_LINK = 0.05e9
"""Bytes a second between hosts; gigabit Ethernet has 0.12e9."""
SLOWER_THAN_OTHERS = 4.0
LATE_LINK = 0.01
"""Seconds that a number takes to go round."""
_INTERFACE = "GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME"
_SEE_TO_CARD = f"see to cable, switch and interface ({_INTERFACE}); every step waits for it"
_SEE_TO_WAY = (
    "see to what lies between the hosts (cable, switch, a tunnel, another site) and to the interface "
    f"({_INTERFACE}): every exchange waits so long, and its rate falls with it"
)
TOLERANCE = {"float32": (1e-5, 1e-4), "bfloat16": (1e-3, 5e-2)}
"""How far loss and gradient may be off, relative, by the run's precision."""


def together(heard: Heard, ranks: int, seconds: float) -> list[Verdict]:
    """All that the ranks looked at."""
    return [*_meeting(heard, ranks, seconds), *_exchanges(heard.of("exchange")), *map(_parity, heard.of("parity"))]


def _meeting(heard: Heard, ranks: int, seconds: float) -> Iterator[Verdict]:
    met, started, problems = heard.of("met"), heard.of("started"), heard.of("problem")
    if len(met) == ranks:
        backend = min(met, key=lambda finding: finding["rank"])["backend"]
        devices = sorted({finding["device"].partition(":")[0] for finding in met})
        where = counted(len({finding["host"] for finding in met}), "host")
        found = f"{counted(ranks, 'rank')} on {where} met over {backend}, on {', '.join(devices)}"
        yield Verdict("ranks", "all", OK, found)
    elif len(started) < ranks:
        absent = sorted(set(range(ranks)) - {finding["rank"] for finding in started})
        said = f"; the launcher said: {heard.others[-1]}" if heard.others else ""
        found = f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent))} of {ranks} did not start{said}"
        to_do = "see to the host that has it, and to the launcher (deepspeed, pdsh, ssh)"
        yield Verdict("ranks", "all", WRONG, found, to_do)
    if problems:
        # The others' errors follow from the first one's; those that only met nobody say the least.
        problem = next((each for each in problems if "not done" not in each["text"]), problems[0])
        found = f"in {problem['step']}: {problem['text']}"
        to_do = "correct it, then look again"
        if problem["step"].startswith(("meeting the other ranks", "exchange")):
            to_do = f"let the hosts reach each other on all ports, and name the interface ({_INTERFACE})"
        yield Verdict("ranks", f"rank {problem['rank']} on {problem['host']}", WRONG, found, to_do)
    elif len(started) == ranks and not heard.of("end"):
        last = heard.findings[-1]["kind"] if heard.findings else "nothing"
        found = f"did not end within {seconds:.0f} s; the last that was heard: {last}"
        yield Verdict("ranks", "all", WRONG, found, "raise --seconds, or see to the links")


def _exchanges(rows: list[dict[str, Any]]) -> Iterator[Verdict]:
    links = [row for row in rows if row["what"] == "between"]
    usual = statistics.median(row["rate"] for row in links) if links else 0.0
    for row in rows:
        found = (
            f"{row['size']} ranks: {row['rate'] / 1e9:.3g} GB/s a rank ({row['bytes'] / 2**20:,.1f} MiB in "
            f"{row['seconds']:.3f} s), {row['latency'] * 1e3:.2f} ms for a number; values right"
        )
        level, to_do = OK, ""
        if not row["right"]:
            found = f"{row['size']} ranks: other values arrived than were sent"
            level, to_do = WRONG, "a defect of the hardware, its driver or the back end: do not train on it"
        elif row["what"] == "between":
            slower = usual / row["rate"]
            if row["rate"] < SLOW_LINK or slower > SLOWER_THAN_OTHERS:
                found += "; a slow link" + (f", 1/{slower:.0f} of the others" if slower > SLOWER_THAN_OTHERS else "")
                level, to_do = WRONG, _SEE_TO_CARD
            if row["latency"] > LATE_LINK:
                found += "; a long delay"
                level = WARNING if level is OK else level
                to_do = _SEE_TO_WAY  # the rate, too, may be the delay's
        yield Verdict("exchange", row["between"], level, found, to_do)


def _parity(row: dict[str, Any]) -> Verdict:
    where = f"sp 1 and {row['size']}"
    if "ranks" in row:
        found = f"not looked at: {row['ranks']} ranks cannot be cut into groups of {row['size']}"
        return Verdict("parity", where, WARNING, found, "look again when all hosts answer")
    loss, gradient = TOLERANCE[row["precision"]]
    found = (
        f"{row['context']:,} tokens in {row['size']} slices: loss off by {row['loss']:.1e}, gradients by {row['gradient']:.1e} "
        f"({row['precision']}, {row['back_end']}; at most {loss:.0e} and {gradient:.0e})"
    )
    if row["loss"] <= loss and row["gradient"] <= gradient:  # not where one is NaN
        return Verdict("parity", where, OK, found)
    to_do = "these devices do not compute alike: try convolution=fft, then report it"
    return Verdict("parity", where, WRONG, found, to_do)
