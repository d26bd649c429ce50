"""What the doctor makes of what hosts and ranks have told it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from hyena_ds.doctor import judge
from hyena_ds.doctor.launch import Heard
from hyena_ds.doctor.ranks_judge import together
from hyena_ds.doctor.verdict import Level, Verdict, exit_code, table, to_json

GIB = 2**30


def host(name: str, **facts: Any) -> Any:
    own = {"python": "3.11.7", "hyena-ds": "0.1.0", "source": "abc", "packages": {"numpy": "2.4.6"}}
    own |= {"name": name, "memory_gib": 24.0, "programs": ["ssh", "pdsh"]}
    devices = {"torch": "2.13.0", "build": "13.0", "devices": [], "cores": 8}
    found: dict[str, Any] = {"host": own, "devices": devices, "clock": (0.001, 0.002), **facts}
    return SimpleNamespace(name=name, facts=found, problems={})


def silent(name: str, asked: str, problem: str) -> Any:
    found = host(name)
    found.problems[asked] = problem
    del found.facts[asked]
    return found


def levels(verdicts: list[Verdict]) -> list[tuple[str, Level]]:
    return [(verdict.where, verdict.level) for verdict in verdicts]


def test_equal_hosts_are_one_line_and_a_host_with_another_version_or_source_is_named() -> None:
    hosts = [host(f"node{n}") for n in range(3)]
    (line,) = judge.versions(hosts)
    assert (line.where, line.level) == ("all 3 hosts", Level.OK) and "torch 2.13.0 (13.0)" in line.found
    hosts[1].facts["devices"] = {**hosts[1].facts["devices"], "torch": "2.12.0"}
    hosts[2].facts["host"] = {**hosts[2].facts["host"], "source": "xyz"}
    torch, source = sorted(judge.versions(hosts), key=lambda verdict: verdict.where)
    assert torch.where == "node1" and "torch 2.12.0 (13.0), where 2 other hosts have 2.13.0 (13.0)" in torch.found
    assert source.where == "node2" and "source xyz, where 2 other hosts have abc" in source.found
    assert exit_code([torch]) == 1


def test_a_host_without_torch_is_named() -> None:
    broken = silent("node1", "devices", "ModuleNotFoundError: No module named 'torch'")
    (found,) = judge.versions([host("node0"), broken])
    assert levels([found]) == [("node1", Level.WRONG)] and "No module named 'torch'" in found.found


@pytest.mark.parametrize(
    ("gpus", "programs", "ranks", "level", "words"),
    [
        (["H200, 139 GiB"] * 8, [], 8, Level.OK, "8 x H200, 139 GiB, 8 cores, 24.0 GiB, for 8 ranks"),
        (["H200, 139 GiB"] * 2, [], 8, Level.WRONG, "2 x H200"),
        ([], ["nvidia-smi"], 1, Level.WARNING, "no GPU"),
        ([], [], 9, Level.WARNING, "8 cores, 24.0 GiB, for 9 ranks"),
        ([], [], 8, Level.OK, "no GPU, 8 cores"),
    ],
)
def test_devices_are_counted_against_the_ranks_that_start_there(
    gpus: list[str], programs: list[str], ranks: int, level: Level, words: str
) -> None:
    only = host("node0")
    only.facts["devices"]["devices"] = gpus
    only.facts["host"]["programs"] = programs
    (found,) = judge.devices([only], [ranks])
    assert found.level is level and words in found.found and bool(found.to_do) == (level is not Level.OK)


def test_another_kind_of_device_is_a_warning() -> None:
    hosts = [host(f"node{n}") for n in range(3)]
    for n, name in enumerate(("H200", "H200", "A100")):
        hosts[n].facts["devices"]["devices"] = [name]
    assert [level for _, level in levels(judge.devices(hosts, [1, 1, 1]))] == [Level.OK, Level.OK, Level.WARNING]


@pytest.mark.parametrize(
    ("clock", "level", "words"),
    [
        ((0.4, 0.1), Level.OK, "within 0.500 s"),
        ((-2.5, 0.1), Level.WARNING, "2.5 s behind this machine's"),
        ((3600.0, 0.1), Level.WRONG, "3600.0 s ahead of this machine's"),
        ((5.0, 6.0), Level.OK, "within 11.000 s"),
    ],
)
def test_clocks_are_compared_within_what_the_question_took(
    clock: tuple[float, float], level: Level, words: str
) -> None:
    found = judge.clocks([host("node0"), host("node1", clock=clock)])[0]
    assert found.level is level and words in found.found


def disk(free: float, seconds: float = 1.0, written: float = GIB) -> dict[str, Any]:
    return {"place": "/runs", "free": int(free), "written": int(written), "seconds": seconds}


@pytest.mark.parametrize(
    ("found", "level", "words"),
    [
        (disk(100 * GIB), Level.OK, "100.0 GiB free, written at 1,074 MB/s; a checkpoint takes 1.0 GiB, 3 are kept"),
        (disk(1.5 * GIB), Level.WRONG, "1.5 GiB free"),
        (disk(4 * GIB), Level.WARNING, "4.0 GiB free"),
        (disk(100 * GIB, seconds=100), Level.WARNING, "written at 11 MB/s"),
    ],
)
def test_room_and_speed_of_the_disk_are_measured_against_the_checkpoints(
    found: dict[str, Any], level: Level, words: str
) -> None:
    only = host("node0", disk=found, seen=["node0"])
    (verdict,) = judge.disks([only], GIB, 3)
    assert verdict.level is level and words in verdict.found


def test_a_run_directory_that_is_not_shared_is_said_of_whoever_does_not_see_it() -> None:
    hosts = [host("a", disk=disk(9 * GIB), seen=["a"]), host("b", disk=disk(9 * GIB), seen=["a", "b"])]
    wrong = [verdict for verdict in judge.disks(hosts, 0, 1) if verdict.level is Level.WRONG]
    assert levels(wrong) == [("a", Level.WRONG)] and "does not see what b wrote to /runs" in wrong[0].found


def row(**changes: Any) -> dict[str, Any]:
    return {"place": "data/x", "index": "i", "bad": [], "checked": 4, "shards": 4, "bytes": GIB, **changes}


def test_shards_are_right_equal_and_all_checked_or_it_is_said_of_which_host() -> None:
    def judged(*rows: dict[str, Any]) -> list[Verdict]:
        return judge.shards([host(f"node{n}", shards=[found]) for n, found in enumerate(rows)])

    (fine,) = judged(row(), row())
    assert fine.level is Level.OK and "4 shards, 1.0 GiB, as their SHA-256 says" in fine.found
    (bad,) = judged(row(), row(bad=["x.tar: damaged", "y.tar: damaged"]))
    assert levels([bad]) == [("node1", Level.WRONG)] and "x.tar: damaged (and 1 more)" in bad.found
    (other,) = judged(row(), row(), row(index="j"))
    assert levels([other]) == [("node2", Level.WRONG)] and "index.json is another" in other.found
    (partly,) = judged(row(checked=1))
    assert partly.level is Level.WARNING and "1 of 4 shards checked in time" in partly.found
    (afar,) = judged(row(afar=True, checked=1))
    assert afar.level is Level.OK and "one shard as its SHA-256 says" in afar.found
    (late,) = judge.shards([_late_host()])
    assert levels([late]) == [("node0", Level.WRONG)]


def _late_host() -> Any:
    late = host("node0")
    late.problems["shards"] = "no answer in 9 s"
    return late


def met(ranks: int) -> list[dict[str, Any]]:
    each = [{"rank": rank, "host": f"node{rank}"} for rank in range(ranks)]
    started = [{"kind": "started", **who} for who in each]
    return started + [{"kind": "met", "backend": "b", "device": "d:0", **who} for who in each]


def exchange(between: str, rate: float, what: str = "between", **changes: Any) -> dict[str, Any]:
    found = {"kind": "exchange", "what": what, "between": between, "size": 2, "right": True, "rate": rate}
    return {"rank": 0, "host": "node0", **found, "bytes": 1 << 20, "seconds": 0.1, "latency": 1e-4, **changes}


END = {"kind": "end", "rank": 0, "host": "node0"}


def test_links_that_are_slow_late_or_wrong_are_named() -> None:
    rows = [exchange("a - b", 1e9), exchange("a - c", 1e9), exchange("b - c", 0.2e9)]
    found = together(Heard([*met(3), *rows, END], code=0), 3, 9)
    assert levels(found)[-1] == ("b - c", Level.WRONG) and "a slow link, 1/5 of the others" in found[-1].found
    assert exit_code(found[:-1]) == 0
    absolute = together(Heard([*met(2), exchange("a - b", 1e6), END], code=0), 2, 9)[-1]
    assert absolute.level is Level.WRONG and "a slow link" in absolute.found
    late = together(Heard([*met(2), exchange("a - b", 1e9, latency=0.05), END], code=0), 2, 9)[-1]
    assert late.level is Level.WARNING and late.found.endswith("50.00 ms for a number; values right; a long delay")
    both = together(Heard([*met(2), exchange("a - b", 1e6, latency=0.05), END], code=0), 2, 9)[-1]
    assert both.level is Level.WRONG and both.found.endswith("; a slow link; a long delay")
    assert both.to_do == late.to_do != absolute.to_do
    broken = together(Heard([*met(2), exchange("a", 1e9, "inside", right=False), END], code=0), 2, 9)[-1]
    assert broken.level is Level.WRONG and "other values arrived than were sent" in broken.found
    inside = together(Heard([*met(2), exchange("a", 1e6, "inside"), END], code=0), 2, 9)[-1]
    assert inside.level is Level.OK


@pytest.mark.parametrize(
    ("loss", "gradient", "precision", "level"),
    [
        (1e-7, 1e-6, "float32", Level.OK),
        (1e-4, 1e-6, "float32", Level.WRONG),
        (1e-7, 1e-2, "float32", Level.WRONG),
        (1e-4, 1e-2, "bfloat16", Level.OK),
        (float("nan"), 1e-6, "float32", Level.WRONG),
    ],
)
def test_a_cut_sequence_that_computes_something_else_is_wrong(
    loss: float, gradient: float, precision: str, level: Level
) -> None:
    row = {"kind": "parity", "size": 2, "context": 512, "loss": loss, "gradient": gradient, "precision": precision}
    found = together(Heard([*met(2), {**row, "back_end": "fft"}, END], code=0), 2, 9)[-1]
    assert (found.where, found.level) == ("sp 1 and 2", level)


def test_ranks_that_do_not_start_meet_or_end_are_named() -> None:
    (absent,) = together(Heard(met(3)[:2], ["pdsh: command not found"], 1), 3, 9)
    assert "rank 2 of 3 did not start; the launcher said: pdsh: command not found" in absent.found
    problem = {"kind": "problem", "rank": 1, "host": "node1", "step": "meeting the other ranks", "text": "refused"}
    (alone,) = together(Heard([*met(2)[:2], problem], [], 1), 2, 9)
    assert levels([alone]) == [("rank 1 on node1", Level.WRONG)]
    assert "meeting the other ranks: refused" in alone.found and "GLOO_SOCKET_IFNAME" in alone.to_do
    (stuck,) = together(Heard(met(2)[:2]), 2, 9)
    assert "did not end within 9 s" in stuck.found


def test_the_table_and_the_json_hold_every_verdict_and_only_what_is_wrong_counts() -> None:
    verdicts = [
        Verdict("disk", "node0", Level.OK, "fine"),
        Verdict("a check with a long name", "node1", Level.WARNING, "w " * 80, "do " * 60),
    ]
    shown = table(verdicts)
    assert shown.startswith("ok       disk") and shown.endswith("2 checks: 0 wrong, 1 warning")
    assert max(map(len, shown.splitlines())) <= 120 and "-> do do" in shown
    assert exit_code(verdicts) == 0 and json.loads(to_json(verdicts))["ok"]
    verdicts.append(Verdict("clock", "node1", Level.WRONG, "late"))
    assert exit_code(verdicts) == 1
    assert json.loads(to_json(verdicts))["verdicts"][2]["level"] == "wrong"
