"""Hosts of a supervised run: which are chosen, what the launch command becomes, and what is said; ssh is a script here."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hyena_ds.cli import main
from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError
from hyena_ds.planning.other_hosts import layout
from hyena_ds.runtime import supervisor
from hyena_ds.runtime.hostfile import Host
from hyena_ds.runtime.roster import Choice, Layout, choose, described, place_of_hostfile, roster_of
from tests.runtime.test_supervisor import BEGIN
from tests.training.runs import write_config

HOSTS = tuple(Host(f"node{number}", 1) for number in range(4))
SSH = """#!/bin/bash
host=${@: -2:1}
grep -qsx "$host" "$DOWN" || exec bash -c "${@: -1}"
echo "ssh: connect to host $host port 22: No route to host" >&2
exit 255
"""


class Cluster:
    """A launch command on four hosts that runs `script`, in which `down NAME` and `up NAME` take and give a host's power."""

    def __init__(self, directory: Path, **changes: object):
        self.directory, self.run = directory, directory / "runs" / "run"
        stage = {"context_length": 252, "steps": 30, "global_batch": 6, "micro_batch_size": 1, "sequence_parallel": 3}
        model = {"width": 24, "layers": 2, "maximum_context": 252}
        settings: dict[str, Any] = {"model": model, "stages": [stage], **changes}
        path = write_config(directory / "config.yaml", directory, **settings)
        self.config = load_yaml(path, RunConfig)
        self.hostfile = directory / "hosts"
        self.hostfile.write_text("# racks 1 and 2\n" + "".join(f"{host.name} slots=1\n" for host in HOSTS))
        (directory / "bin").mkdir()
        (directory / "bin" / "ssh").write_text(SSH)
        (directory / "bin" / "ssh").chmod(0o755)
        self.launch = directory / "hostfile.sh"
        self.command = ["bash", str(self.launch), str(self.hostfile), str(path)]
        path_of_programs = f"{directory / 'bin'}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path_of_programs, "DOWN": str(directory / "down")}

    def supervise(self, script: str, command: Sequence[str] = (), **environment: str) -> tuple[int, list[str]]:
        """The exit code, and what every start was given: its hosts, then its overrides."""
        begin = f"RUN={shlex.quote(str(self.run))}\n{BEGIN}"
        begin += 'down() { echo $1 >> "$DOWN"; }\nup() { sed -i "/^$1$/d" "$DOWN"; }\n'
        begin += 'echo $(sed -n "s/ slots=1//p" "$1") "${@:3}" >> "$RUN/given"\n'
        self.launch.write_text(begin + script)
        words, variables = command or self.command, {**self.environment, **environment}
        roster = roster_of(self.config, words, variables, layout)
        code = supervisor.supervise(self.config, words, variables, roster)
        return code, (self.run / "given").read_text().splitlines()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)


@pytest.mark.parametrize(
    ("there", "wanted", "fewest", "grids", "chosen"),
    [
        ((0, 1, 2, 3), 3, 1, {3: True}, (0, 1, 2)),  # the last waits
        ((0, 2, 3), 3, 1, {3: True}, (0, 2, 3)),  # it takes the place of the lost one
        ((2, 3), 3, 1, {2: True}, (2, 3)),  # no spare is left
        ((0, 1, 2), 4, 1, {2: True}, (0, 1)),  # three do not divide the batch
        ((0, 1, 2), 4, 1, {3: False, 2: True}, (0, 1)),  # three do, but it would not fit
        ((0, 1, 2), 4, 1, {3: False, 2: False}, (0, 1, 2)),  # nothing fits
        ((0, 1, 2), 4, 3, {2: True}, None),
        ((0,), 4, 2, {1: True}, None),
        ((), 4, 1, {}, None),
    ],
)
def test_as_many_hosts_are_chosen_as_are_wanted_answer_and_have_a_grid(
    there: Sequence[int], wanted: int, fewest: int, grids: Mapping[int, bool], chosen: Sequence[int] | None
) -> None:
    def plan(hosts: Sequence[Host]) -> Layout | None:
        return Layout((), fits=grids[len(hosts)]) if len(hosts) in grids else None

    found = choose([HOSTS[number] for number in there], wanted, fewest, plan)
    assert (None if found is None else found.hosts) == (chosen and tuple(HOSTS[number] for number in chosen))


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("bash launch/hostfile.sh H CONFIG", 2),
        ("bash /site/hyena_ds/launch/hostfile.sh H CONFIG a=b", 2),
        ("deepspeed --hostfile H --module hyena_ds train CONFIG", 2),
        ("deepspeed -H H --module hyena_ds train CONFIG", 2),
        ("deepspeed --hostfile H --launcher openmpi --module hyena_ds train CONFIG", None),
        ("deepspeed --hostfile H --no_ssh --node_rank 1 --module hyena_ds train CONFIG", None),
        ("bash launch/hostfile.sh", None),
        ("hyena-ds train CONFIG", None),
    ],
)
def test_the_hostfile_of_a_launch_command_is_found(command: str, place: int | None) -> None:
    assert place_of_hostfile(command.split(), {}) == place
    assert place is None or "hostfile.sh" not in command or place_of_hostfile(command.split(), {"NO_SSH": "1"}) is None


def test_a_spare_takes_the_place_of_a_lost_host_and_when_none_is_left_the_grid_changes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(tmp_path, supervisor={"spare_hosts": 1})
    code, given = cluster.supervise(
        "case $starts in 1) checkpoint 3; down node1; fault 4 silent 'rank 1 is silent';; "
        "2) checkpoint 6; down node0; fault 7 silent 'rank 0 is silent';; esac"
    )
    assert code == 0
    assert given == ["node0 node1 node2", "node0 node2 node3", "node2 node3 stages.0.sequence_parallel=2"] or given == [
        "node0 node1 node2",
        "node0 node2 node3",
        "node2 node3 stages.0.sequence_parallel=1",
    ]
    changed = given[-1].split()[-1]
    grid = "dp 1 x sp 2" if changed.endswith("2") else "dp 2 x sp 1"
    gone = "(ssh: connect to host {} port 22: No route to host)"
    said = [
        f"hosts: without node1 {gone.format('node1')}, node3 takes its place, now 3 hosts, 3 ranks, the grid as before, the "
        "global batch as before, from the checkpoint of step 3",
        f"hosts: without node0 {gone.format('node0')}, no spare is left, now 2 hosts, 2 ranks, stage 0 dp 1 x sp 3 -> {grid}, "
        f"by {changed}, the global batch as before, from the checkpoint of step 6",
    ]
    lines = [line for line in capfd.readouterr().err.splitlines() if "hosts: " in line]
    assert lines == [f"hyena-ds supervise: {line}" for line in said]
    rows = [json.loads(line) for line in (cluster.run / "faults.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows if row["kind"] == "hosts"] == said
    assert [row["step"] for row in rows if row["kind"] == "hosts"] == [3, 6]
    assert (cluster.run / "hosts.txt").read_text() == "node2 slots=1\nnode3 slots=1\n"


def test_a_failure_of_no_host_changes_nothing_and_writes_no_hostfile(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(tmp_path, stages=[{"context_length": 252, "steps": 30, "global_batch": 8}])
    code, given = cluster.supervise("[ $starts = 2 ] || fault 4 died 'rank 1 died'")
    assert (code, given) == (0, ["node0 node1 node2 node3"] * 2)
    assert "hosts: " not in capfd.readouterr().err and not (cluster.run / "hosts.txt").exists()


def test_a_host_that_answers_but_fails_twice_in_a_row_is_left_out_while_another_can_take_its_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(tmp_path, supervisor={"spare_hosts": 1, "fewest_hosts": 3})
    script = "[ $starts = 5 ] && exit 0; [ $starts = 1 ] && checkpoint 3; fault $starts "
    code, given = cluster.supervise(script + """$([ $starts = 2 ] && echo raised || echo died) "it's $starts" """)
    # Once, an error of the program, once; then twice in a row; then no host is left that could take its place.
    assert code == 0
    assert given == ["node0 node1 node2"] * 4 + ["node0 node2 node3"]
    assert "without node1 (it answers, but two starts in a row failed there), node3 takes" in capfd.readouterr().err


def test_with_too_few_hosts_it_waits_for_them_and_gives_up_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path, supervisor={"spare_hosts": 1, "fewest_hosts": 3})
    (tmp_path / "pings").write_text("")
    # Every host counts who asks it; node0 and node1 come back after the second time.
    ssh = f'echo >> {tmp_path}/pings; [ $(wc -l < {tmp_path}/pings) -le 8 ] || : > "$DOWN"\n'
    (tmp_path / "bin" / "ssh").write_text(SSH.replace("host=", ssh + "host=", 1))
    code, given = cluster.supervise("[ $starts = 2 ] || { down node0; down node1; fault 4 silent 'rank 1 is silent'; }")
    assert (code, given) == (0, ["node0 node1 node2"] * 2)
    said = capfd.readouterr().err
    assert "2 of 4 hosts answer (ssh: connect to host node0 port 22: No route to host; ssh: connect to" in said
    assert "), wanted at least 3 (supervisor.fewest_hosts); starting again from step 0 in " in said


def test_without_hosts_it_gives_up_with_the_code_of_the_failure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(tmp_path, supervisor={"spare_hosts": 1, "restarts_without_progress": 2})
    code, given = cluster.supervise("for n in 0 1 2 3; do down node$n; done; fault 4 silent 'rank 1 is silent'")
    assert (code, given) == (70, ["node0 node1 node2"])
    last = capfd.readouterr().err.splitlines()[-1]
    assert "0 of 4 hosts answer (" in last and last.endswith(
        "giving up: restarts without a newer checkpoint: 2 (supervisor.restarts_without_progress)"
    )


def test_hosts_whose_ranks_divide_the_batch_on_no_grid_are_said_to(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(
        tmp_path,
        model={"width": 32, "layers": 2, "maximum_context": 256},
        stages=[{"context_length": 256, "steps": 30, "global_batch": 4}],
        supervisor={"fewest_hosts": 3, "restarts_without_progress": 1},
    )
    code, _ = cluster.supervise("down node2; fault 4 silent 'rank 2 is silent'")
    assert code == 70
    assert (
        "3 of 4 hosts answer (ssh: connect to host node2 port 22: No route to host); no grid on 3 or more "
        "(supervisor.fewest_hosts) divides the global batch; giving up: restarts"
    ) in capfd.readouterr().err


def test_what_looks_like_a_users_mistake_after_a_lost_host_costs_another_start(tmp_path: Path) -> None:
    """A launch refuses a host that was lost since the look at all with code 2; ranks refuse a run whose lock a dead host holds."""
    cluster = Cluster(tmp_path, supervisor={"spare_hosts": 1})
    code, given = cluster.supervise(
        "case $starts in 1) fault 4 died 'rank 1 died';; 2) down node1; exit 2;; esac; exit 2"
    )
    assert (code, given) == (2, ["node0 node1 node2"] * 2 + ["node0 node2 node3"] * 2)


def test_the_address_of_the_first_host_is_forgotten_with_it(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, supervisor={"spare_hosts": 1})
    script = (
        'echo "at $MASTER_ADDR" >> "$RUN/given"; [ $starts = 2 ] || { down node0; fault 4 silent "rank 0 is silent"; }'
    )
    code, given = cluster.supervise(script, MASTER_ADDR="10.0.0.1")
    assert (code, given[1::2]) == (0, ["at 10.0.0.1", "at "])


def test_deepspeed_s_own_option_gets_the_other_hosts(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, supervisor={"spare_hosts": 1})
    command = ["bash", "-c", 'exec bash "$1" "$3" "${@:4}"', "deepspeed", str(cluster.launch), "--hostfile"]
    command += [str(cluster.hostfile), "config.yaml"]
    cluster.launch = cluster.launch.rename(tmp_path / "x.sh") if cluster.launch.exists() else tmp_path / "x.sh"
    command[4] = str(cluster.launch)
    code, given = cluster.supervise("[ $starts = 2 ] || { down node1; fault 4 silent 'rank 1 is silent'; }", command)
    assert (code, given) == (0, ["node0 node1 node2", "node0 node2 node3"])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"spare_hosts": 4}, "supervisor.spare_hosts: found 4 with 4 in {}, wanted fewer than there are"),
        (
            {"spare_hosts": 1, "fewest_hosts": 4},
            "supervisor.fewest_hosts: found 4, and 3 of 4 hosts in {} are no spares",
        ),
    ],
)
def test_more_spares_or_more_hosts_than_there_are_is_a_users_mistake(
    settings: dict[str, int], problem: str, tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path, supervisor=settings)
    with pytest.raises(UserError) as error:
        roster_of(cluster.config, cluster.command, cluster.environment, layout)
    assert problem.format(cluster.hostfile) in str(error.value)


def test_spares_without_a_hostfile_are_a_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Cluster(tmp_path)
    assert main(["supervise", str(tmp_path / "config.yaml"), "supervisor.spare_hosts=1"]) == 2
    assert (
        "supervisor.spare_hosts: found 1, and a launch command without a hostfile, wanted one whose last hosts are"
        in (capsys.readouterr().err)
    )


def test_many_hosts_and_stages_are_counted_in_a_sentence_of_a_line(tmp_path: Path) -> None:
    config = Cluster(tmp_path, stages=[{"context_length": 4, "steps": 1, "global_batch": 16}] * 9).config
    many = tuple(Host(f"node{number}", 2) for number in range(8))
    before, after = (Choice(hosts, Layout(plan_stages(config, 2 * len(hosts)))) for hosts in (many, many[:4]))
    out = {host.name: f"gone\n{host.name[-1]}" for host in many[4:]}
    said = described(before, after, {**out, "x": "gone", "y": "gone"}, [], step=2)
    assert said == (
        "hosts: without node4, node5, node6, node7 and 2 more (gone\\n4; gone\\n5; gone\\n6; gone\\n7), no spare is left, now 4 "
        "hosts, 8 ranks, stage 2 dp 16 x sp 1 -> dp 8 x sp 1, stage 3 dp 16 x sp 1 -> dp 8 x sp 1, stage 4 dp 16 x sp 1 -> dp 8 "
        "x sp 1, stage 5 dp 16 x sp 1 -> dp 8 x sp 1 and 3 more, the global batch as before, from the checkpoint of step 2"
    )
