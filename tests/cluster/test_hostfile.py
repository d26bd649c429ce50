"""`launch/hostfile.sh` trains on several hosts as one process would, over links that are slow or away for a moment."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import deepspeed.ops
import psutil

from tests.cluster.hosts import Hosts
from tests.cluster.launches import (
    STEPS,
    Launch,
    Reference,
    are_equal,
    left,
    listening,
    losses,
    ranks,
    reference,
    write_run,
)
from tests.paths import ROOT
from tests.training.runs import tree

NAME = 'two $HOME "hosts" `id` %h; \\ it'
SPECIAL = "a \"b\" $HOME `id` 'c' \\ %h %%"


def test_two_hosts_have_one_process_s_losses_and_every_rank_its_settings(
    hosts_of: Callable[[int], Hosts], single: Reference, tmp_path: Path
) -> None:
    hosts = hosts_of(2)
    config = write_run(tmp_path, single.shards, name=NAME, watchdog={"silence": 10})
    run = tmp_path / "runs" / NAME
    extensions = _with_locks(tmp_path / "extensions")
    before = tree(extensions)
    setup = tmp_path / "setup.sh"
    setup.write_text("export FROM_SETUP=$(hostname)\n")
    launch = Launch(
        hosts[0],
        hosts.hostfile(2),
        config,
        f"name={NAME}",
        'data.ignore=["n","unknown"]',
        FORWARD="MINE ABSENT",
        MINE=SPECIAL,
        NCCL_DEBUG_FILE="%h.%p",
        TORCH_EXTENSIONS_DIR=str(extensions),
        HOST_SETUP=str(setup),
        GLIBC_TUNABLES="",
    )
    launch.reach(run, 4)
    seen = [ranks(host) for host in hosts]
    assert [sorted(found) for found in seen] == [["0", "1"], ["2", "3"]]
    for host, found in zip(hosts, seen, strict=True):
        for environment in found.values():
            assert environment["MINE"] == SPECIAL and "ABSENT" not in environment
            assert environment["NCCL_DEBUG_FILE"] == "%h.%p"
            assert environment["GLIBC_TUNABLES"] == ""
            assert environment["OMP_NUM_THREADS"] == "1" and environment["DS_ACCELERATOR"] == "cpu"
            assert environment["FROM_SETUP"] == host.name
    hosts.cut(hosts[1])
    time.sleep(1)
    hosts.mend(hosts[1])
    code, output = launch.end()
    assert code == 0, output
    assert are_equal(losses(run), single.losses)
    assert "hosts: node0 (ranks 0 to 1), node1 (ranks 2 to 3)" in output
    assert "lie across hosts" not in output
    assert tree(extensions) == before  # nothing is built, and no lock of a killed build is waited for
    assert not left(*hosts.hosts)


def test_two_hosts_whose_exchanges_come_late_have_one_process_s_losses_and_no_watchdog_ends_them(
    hosts_of: Callable[[int], Hosts], tmp_path: Path
) -> None:
    few, micro_steps, delay = 5, 8, 0.02
    single = reference(_new(tmp_path / "single"), few)
    hosts = hosts_of(2)
    print(f"the slow link: {hosts.slow(hosts[1], 100, 1e3 * delay)}")
    config = write_run(tmp_path, single.shards, steps=few, watchdog={"silence": 10, "step": 30})
    run = tmp_path / "runs" / "run"
    launch = Launch(hosts[0], hosts.hostfile(1), config)
    launch.reach(run, 1)
    began = time.monotonic()
    launch.reach(run, few)
    took = time.monotonic() - began
    code, output = launch.end()
    assert code == 0, output
    assert are_equal(losses(run), single.losses)
    assert not (run / "faults.jsonl").exists()
    assert "stage 0: 1 of 1 sequence-parallel groups of 2 ranks lie across hosts" in output
    print(f"{took / (few - 1):.1f} s a step")
    # There and back in either of two layers, forward and backward.
    assert took > (few - 1) * micro_steps * 2 * 4 * delay


def test_ranks_on_several_hosts_listen_on_the_way_to_rank_0_alone(
    hosts_of: Callable[[int], Hosts], single: Reference, tmp_path: Path
) -> None:
    hosts = hosts_of(2)
    launch = Launch(hosts[0], hosts.hostfile(1), write_run(tmp_path, single.shards))
    launch.reach(tmp_path / "runs" / "run", 1)
    assert [listening(host) for host in hosts.hosts] == [{host.address} for host in hosts.hosts]


def test_hosts_without_ssh_train_over_a_slow_link_and_say_that_sequences_lie_across_hosts(
    hosts_of: Callable[[int], Hosts], single: Reference, tmp_path: Path
) -> None:
    hosts = hosts_of(4)
    print(f"the slow link: {hosts.slow(hosts[3], 20, 1)}")
    config, hostfile = write_run(tmp_path, single.shards, watchdog={"silence": 20}), hosts.hostfile(1)
    launches = [
        Launch(
            host, hostfile, config, NO_SSH="1", NODE_RANK=str(number), MASTER_ADDR="node0", GLOO_SOCKET_IFNAME="eth0"
        )
        for number, host in enumerate(hosts.hosts)
    ]
    ends = [launch.end() for launch in launches]
    assert [code for code, _ in ends] == [0] * 4, ends
    assert are_equal(losses(tmp_path / "runs" / "run"), single.losses)
    assert "stage 0: 2 of 2 sequence-parallel groups of 2 ranks lie across hosts" in ends[0][1]


def test_a_signal_saves_on_all_hosts_and_a_killed_launcher_leaves_no_rank_behind(
    hosts_of: Callable[[int], Hosts], single: Reference, tmp_path: Path
) -> None:
    hosts = hosts_of(3)
    login = hosts[2]
    config, run = write_run(tmp_path, single.shards), tmp_path / "runs" / "run"
    hostfile = hosts.hostfile(1, 0, 1)
    launch = Launch(login, hostfile, config)
    launch.reach(run, 2)
    (shell,) = psutil.Process(launch.process.pid).children()
    shell.send_signal(signal.SIGTERM)
    code, output = launch.end()
    assert code == 128 + signal.SIGTERM, output
    assert "which is saved; the same command goes on" in output
    assert not left(*hosts.hosts)
    done = len(losses(run))
    again = Launch(login, hostfile, config)
    again.reach(run, done + 1)
    for process in login.processes("hyena_ds"):  # the script, the launcher, pdsh and every ssh
        process.kill()
    assert again.end()[0] != 0
    assert not left(*hosts.hosts)
    assert len(losses(run)) < STEPS


def test_a_host_that_ssh_does_not_reach_is_named_before_anything_starts(
    hosts_of: Callable[[int], Hosts], single: Reference, tmp_path: Path
) -> None:
    hosts = hosts_of(4)
    config = write_run(tmp_path, single.shards)
    hosts.cut(hosts[1])
    (tmp_path / "empty").mkdir()
    hosts[2].mount(tmp_path / "empty", ROOT)
    hosts[3].mount(Path("/dev/null"), Path("/etc/ssh/key.pub"))
    code, output = Launch(hosts[0], hosts.hostfile(1), config).end()
    assert code == 2, output
    (said,) = output.splitlines()
    assert said.startswith("hyena-ds: error: hosts: node1: ssh: connect to host node1 port 22:")
    assert "; node2: found no " in said
    assert "; node3: root@node3: Permission denied" in said
    assert not (tmp_path / "runs").exists()


def _new(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _with_locks(directory: Path) -> Path:
    """A directory of extensions in which killed builds have left their locks."""
    for name in deepspeed.ops.__compatible_ops__:
        build = directory / name.removeprefix("deepspeed_not_implemented_")
        build.mkdir(parents=True)
        (build / "lock").touch()
    return directory
