"""What the ranks found together --> verdicts: whether they met, how fast they exchange, whether a cut sequence is a whole one."""

from __future__ import annotations

import statistics
from typing import Any

from hyena_ds.doctor.launch import Heard
from hyena_ds.doctor.verdict import Level, Verdict

SLOW_LINK = 0.05e9
"""Bytes a second between hosts; gigabit Ethernet has 0.12e9."""
SLOWER_THAN_OTHERS = 4.0
LATE_LINK = 0.01
"""Seconds that a number takes to go round."""
_SEE_TO_CARD = "see to cable, switch and interface (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME); every step waits for it"
_SEE_TO_WAY = (
    "see to what lies between the hosts (cable, switch, a tunnel, another site) and to the interface (GLOO_SOCKET_IFNAME, "
    "NCCL_SOCKET_IFNAME): every exchange waits so long, and its rate falls with it"
)
TOLERANCE = {"float32": (1e-5, 1e-4), "bfloat16": (1e-3, 5e-2)}
"""Of loss and gradient, relative, by the run's precision."""


def together(heard: Heard, ranks: int, seconds: float) -> list[Verdict]:
    """All that the ranks looked at."""
    return [*_meeting(heard, ranks, seconds), *_exchanges(heard.of("exchange")), *map(_parity, heard.of("parity"))]


def _meeting(heard: Heard, ranks: int, seconds: float) -> list[Verdict]:
    met, started, problems = heard.of("met"), heard.of("started"), heard.of("problem")
    verdicts = []
    if len(met) == ranks:
        first = min(met, key=lambda finding: finding["rank"])
        devices = sorted({finding["device"].partition(":")[0] for finding in met})
        hosts = len({finding["host"] for finding in met})
        where = f"on {hosts} {'host' if hosts == 1 else 'hosts'}"
        found = (
            f"{ranks} {'rank' if ranks == 1 else 'ranks'} {where} met over {first['backend']}, on {', '.join(devices)}"
        )
        verdicts.append(Verdict("ranks", "all", Level.OK, found))
    elif len(started) < ranks:
        absent = sorted(set(range(ranks)) - {finding["rank"] for finding in started})
        said = f"; the launcher said: {heard.others[-1]}" if heard.others else ""
        found = f"{_named(absent)} of {ranks} did not start{said}"
        to_do = "see to the host that has it, and to the launcher (deepspeed, pdsh, ssh)"
        verdicts.append(Verdict("ranks", "all", Level.WRONG, found, to_do))
    if problems:
        # The others' errors follow from the first one's; those that only met nobody say the least.
        problem = next((each for each in problems if "not done" not in each["text"]), problems[0])
        found = f"in {problem['step']}: {problem['text']}"
        to_do = (
            "let the hosts reach each other on all ports, and name the interface (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)"
            if problem["step"] == "meeting the other ranks" or problem["step"].startswith("exchange")
            else "correct it, then look again"
        )
        verdicts.append(Verdict("ranks", f"rank {problem['rank']} on {problem['host']}", Level.WRONG, found, to_do))
    elif len(started) == ranks and not heard.of("end"):
        last = heard.findings[-1]["kind"] if heard.findings else "nothing"
        found = f"did not end within {seconds:.0f} s; the last that was heard: {last}"
        verdicts.append(Verdict("ranks", "all", Level.WRONG, found, "raise --seconds, or see to the links"))
    return verdicts


def _exchanges(rows: list[dict[str, Any]]) -> list[Verdict]:
    links = [row for row in rows if row["what"] == "between"]
    usual = statistics.median(row["rate"] for row in links) if links else 0.0
    verdicts = []
    for row in rows:
        found = (
            f"{row['size']} ranks: {row['rate'] / 1e9:.3g} GB/s a rank ({row['bytes'] / 2**20:,.1f} MiB in "
            f"{row['seconds']:.3f} s), {row['latency'] * 1e3:.2f} ms for a number; values right"
        )
        level, to_do = Level.OK, ""
        if not row["right"]:
            found = f"{row['size']} ranks: other values arrived than were sent"
            level, to_do = Level.WRONG, "a defect of the hardware, its driver or the back end: do not train on it"
        elif row["what"] == "between":
            slower = usual / row["rate"]
            if row["rate"] < SLOW_LINK or slower > SLOWER_THAN_OTHERS:
                found += "; a slow link" + (f", 1/{slower:.0f} of the others" if slower > SLOWER_THAN_OTHERS else "")
                level, to_do = Level.WRONG, _SEE_TO_CARD
            if row["latency"] > LATE_LINK:
                found += "; a long delay"
                level = Level.WARNING if level is Level.OK else level
                to_do = _SEE_TO_WAY  # the rate, too, may be the delay's
        verdicts.append(Verdict("exchange", row["between"], level, found, to_do))
    return verdicts


def _parity(row: dict[str, Any]) -> Verdict:
    if "ranks" in row:
        found = f"not looked at: {row['ranks']} ranks cannot be cut into groups of {row['size']}"
        to_do = "look again when all hosts answer"
        return Verdict("parity", f"sp 1 and {row['size']}", Level.WARNING, found, to_do)
    loss, gradient = TOLERANCE[row["precision"]]
    right = row["loss"] <= loss and row["gradient"] <= gradient
    found = (
        f"{row['context']:,} tokens in {row['size']} slices: loss off by {row['loss']:.1e}, gradients by {row['gradient']:.1e} "
        f"({row['precision']}, {row['back_end']}; at most {loss:.0e} and {gradient:.0e})"
    )
    if right:
        return Verdict("parity", f"sp 1 and {row['size']}", Level.OK, found)
    to_do = "these devices do not compute alike: try convolution=fft, then report it"
    return Verdict("parity", f"sp 1 and {row['size']}", Level.WRONG, found, to_do)


def _named(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
