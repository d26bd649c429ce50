"""Whoever does not answer is a verdict within its time limit, and nothing of it is left."""

from __future__ import annotations

import os
import sys
import time

import psutil
import pytest

from hyena_ds.doctor import hosts, judge, launch
from hyena_ds.doctor.hosts import Probed, each
from hyena_ds.doctor.verdict import Level


def probed(monkeypatch: pytest.MonkeyPatch, *commands: list[str]) -> list[Probed]:
    """Hosts whose probes are other programs."""
    waiting = list(commands)
    monkeypatch.setattr(hosts, "_command", lambda name, environment: waiting.pop(0))
    return [Probed(f"node{number}", dict(os.environ)) for number in range(len(commands))]


def test_hosts_that_are_silent_or_end_are_named_and_the_others_are_asked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    well = [sys.executable, "-m", "hyena_ds.doctor.probe"]
    found = probed(monkeypatch, ["sleep", "60"], ["sh", "-c", "echo kex_exchange: refused; exit 255"], well)
    began = time.monotonic()
    try:
        each(found, "host", 4.0)
        each(found, "clock", 4.0)
    finally:
        for host in found:
            host.close()
    assert time.monotonic() - began < 12
    assert [host.problems for host in found] == [{"host": "no answer in 4 s"}, {"host": "kex_exchange: refused"}, {}]
    assert set(found[2].facts) == {"host", "clock"}
    assert [(verdict.where, verdict.level) for verdict in judge.problems(found, "host")] == [
        ("node0", Level.WRONG),
        ("node1", Level.WRONG),
    ]
    assert not [child for child in psutil.Process().children() if "sleep" in child.cmdline()]


def test_a_question_that_fails_is_a_problem_of_that_question_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    (host,) = probed(monkeypatch, [sys.executable, "-m", "hyena_ds.doctor.probe"])
    try:
        assert host.ask("config", 60.0, config="nowhere.yaml", overrides=[]) is None
        assert isinstance(host.ask("clock", 10.0), float)
    finally:
        host.close()
    assert "nowhere.yaml: cannot read the config" in host.problems["config"]


def test_a_launcher_that_does_not_end_is_ended_with_all_of_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_GRACE_SECONDS", 0.5)
    script = 'echo \'node0: @hyena-ds-doctor {"kind": "started", "rank": 0, "host": "node0"}\'; echo last words; sleep 77 & sleep 77'
    began = time.monotonic()
    heard = launch.listen(["sh", "-c", script], dict(os.environ), 0.5)
    assert time.monotonic() - began < 10
    assert heard.code is None and heard.others == ["last words"]
    assert heard.of("started") == [{"kind": "started", "rank": 0, "host": "node0"}]
    assert not [found for found in psutil.process_iter(["cmdline"]) if found.info["cmdline"] == ["sleep", "77"]]
