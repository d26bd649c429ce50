"""Facts of every host --> verdicts: what differs, what is missing, what is too little. Nothing is asked here.

The hosts are compared with each other, and with what the run's config needs. ranks_judge.py judges what ranks found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hyena_ds.doctor.hosts import Probed
from hyena_ds.doctor.verdict import OK, WARNING, WRONG, Verdict
from hyena_ds.text import counted

CLOCK_WARNS, CLOCK_WRONG = 1.0, 60.0
"""Seconds."""
SLOW_WRITING = 50e6
"""Bytes a second."""
_GIB, _MIB = 2**30, 2**20
_PROBLEMS = {
    "host": (
        "host",
        "cannot be looked at: ",
        "try `ssh HOST true`; it needs no password, and the same directory and Python as here at the same paths",
    ),
    "devices": ("versions", "torch: ", "install torch there"),
    "config": ("config", "", "correct it, or bring it to this host"),
    "disk": ("run directory", "", "make room there, or choose another `output`"),
    "shards": ("shards", "", "see to its disk, or raise --seconds"),
}
"""Check, what is said before the problem, and what to do, where a host has not answered to a question."""


def problems(hosts: Sequence[Probed], fact: str) -> list[Verdict]:
    """A verdict for each host that has a problem in the place of the fact."""
    check, before, to_do = _PROBLEMS[fact]
    failed = [host for host in hosts if fact in host.problems]
    return [Verdict(check, host.name, WRONG, before + host.problems[fact], to_do) for host in failed]


def _known(hosts: Sequence[Probed], fact: str) -> dict[str, Any]:
    """The fact of each host that has it, by the host's name."""
    return {host.name: host.facts[fact] for host in hosts if fact in host.facts}


def _odd(known: dict[str, Any]) -> list[str]:
    """The hosts whose value is not that of most."""
    usual = {value for value, _ in Counter(known.values()).most_common(1)}
    return [name for name, value in known.items() if value not in usual]


def versions(hosts: Sequence[Probed]) -> list[Verdict]:
    """Python, packages and source are those of most hosts."""
    known = {host.name: _versions(host) for host in hosts if "host" in host.facts}
    verdicts = problems(hosts, "devices")
    common: dict[str, str] = {}
    for name in dict.fromkeys(name for found in known.values() for name in found):
        ((most, count),) = Counter(found[name] for found in known.values() if name in found).most_common(1)
        common[name] = most
        to_do = "install the same everywhere" if name != "source" else "bring the same source to every host"
        others = f"{count} other {'host has' if count == 1 else 'hosts have'} {most}"
        verdicts += [
            Verdict("versions", host, WRONG, f"{name} {found[name]}, where {others}", to_do)
            for host, found in known.items()
            if found.get(name, most) != most
        ]
    if known and not verdicts:
        shown = ", ".join(f"{name} {version}" for name, version in common.items())
        verdicts.append(Verdict("versions", _all(known), OK, shown))
    return verdicts


def _versions(host: Probed) -> dict[str, str]:
    facts = host.facts["host"]
    found = {"python": facts["python"], "hyena-ds": facts["hyena-ds"], "source": facts["source"], **facts["packages"]}
    if "devices" in host.facts:
        found["torch"] = f"{host.facts['devices']['torch']} ({host.facts['devices']['build']})"
    return found


def devices(hosts: Sequence[Probed], slots: Sequence[int]) -> Iterator[Verdict]:
    """Each host has what its ranks compute on."""
    known = _known(hosts, "devices")
    odd = _odd({name: tuple(sorted(set(found["devices"]))) for name, found in known.items()})
    for host, ranks in zip(hosts, slots, strict=True):
        if host.name not in known:
            continue
        found, here = host.facts["devices"], host.facts["host"]
        gpus, cores = found["devices"], found["cores"]
        shown = "; ".join(f"{count} x {name}" for name, count in Counter(gpus).items()) or "no GPU"
        shown += f", {counted(cores, 'core')}, {here['memory_gib']} GiB, for {counted(ranks, 'rank')}"
        level, to_do = WARNING, ""
        if gpus and len(gpus) < ranks:
            level, to_do = WRONG, f"let at most {len(gpus)} ranks start there, or let them see more GPUs"
        elif not gpus and "nvidia-smi" in here["programs"]:
            to_do = f"nvidia-smi is there, but torch ({found['build']}) sees no GPU: install a torch with CUDA"
        elif not gpus and cores < ranks:
            to_do = "fewer cores than ranks: they will wait for each other"
        elif host.name in odd:
            to_do = "other devices than on most hosts: all ranks go at the pace of the slowest"
        yield Verdict("devices", host.name, level if to_do else OK, shown, to_do)


def clocks(hosts: Sequence[Probed]) -> list[Verdict]:
    """Clocks agree with this machine's."""
    verdicts = []
    known = _known(hosts, "clock")
    for name, (ahead, error) in known.items():
        off = abs(ahead) - error
        if off > CLOCK_WARNS:
            found = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
            to_do = "set the clock (chrony, ntpd): times in logs and files of the hosts cannot be compared"
            verdicts.append(Verdict("clock", name, WRONG if off > CLOCK_WRONG else WARNING, found, to_do))
    if known and not verdicts:
        largest = max(abs(ahead) + error for ahead, error in known.values())
        verdicts.append(Verdict("clock", _all(known), OK, f"within {largest:.3f} s of this machine's"))
    return verdicts


def disks(hosts: Sequence[Probed], one: int, checkpoints_kept: int) -> Iterator[Verdict]:
    """There is room for the run's checkpoints, it is written fast enough, and all hosts see the same directory.

    `one` checkpoint has so many bytes; without a run there is none.
    """
    yield from problems(hosts, "disk")
    for name, disk in _known(hosts, "disk").items():
        rate = disk["written"] / disk["seconds"]
        found = f"{disk['place']}: {_size(disk['free'])} free, written at {rate / 1e6:,.0f} MB/s"
        if one:
            found += f"; a checkpoint takes {_size(one)}, {checkpoints_kept} are kept"
        level, to_do = WARNING, ""
        if disk["free"] < max(2 * one, _MIB):
            level, to_do = WRONG, "the disk is full: make room, or choose another `output`"
        elif disk["free"] < (checkpoints_kept + 2) * one:
            to_do = "too little for the checkpoints that are kept: make room, or lower checkpoint.keep_last"
        elif rate < SLOW_WRITING and one > 20 * rate:
            to_do = f"a checkpoint takes {one / rate:.0f} s to write: choose a faster disk for `output`"
        yield Verdict("run directory", name, level if to_do else OK, found, to_do)
    looked = [host for host in hosts if "seen" in host.facts and "disk" in host.facts]
    everybody = {host.facts["host"]["name"] for host in looked}
    to_do = "name a directory as `output` that all hosts share: a checkpoint is written by all of them"
    for host in looked:
        if unseen := sorted(everybody - set(host.facts["seen"])):
            found = f"does not see what {', '.join(unseen)} wrote to {host.facts['disk']['place']}"
            yield Verdict("run directory", host.name, WRONG, found, to_do)


def configs(hosts: Sequence[Probed]) -> Iterator[Verdict]:
    """Every host reads the same config."""
    yield from problems(hosts, "config")
    for name in _odd({name: config["digest"] for name, config in _known(hosts, "config").items()}):
        found, to_do = "reads other settings than most hosts", "bring the same file to every host"
        yield Verdict("config", name, WRONG, found, to_do)


def shards(hosts: Sequence[Probed]) -> Iterator[Verdict]:
    """Every source is readable, right and the same on every host."""
    yield from problems(hosts, "shards")
    looked = _known(hosts, "shards")
    for of_hosts in zip(*looked.values(), strict=True):
        yield from _source(dict(zip(looked, of_hosts, strict=True)))


def _source(rows: dict[str, dict[str, Any]]) -> list[Verdict]:
    verdicts = []
    odd = _odd({name: row["index"] for name, row in rows.items() if "index" in row})
    for name, row in rows.items():
        if name in odd:
            found = f"{row['place']}: index.json is another than on most hosts"
            verdicts.append(Verdict("shards", name, WRONG, found, "copy the same shards to every host"))
        if row["bad"]:
            more = f" (and {len(row['bad']) - 1} more)" if len(row["bad"]) > 1 else ""
            verdicts.append(Verdict("shards", name, WRONG, row["bad"][0] + more, "copy them again to this host"))
        elif row["checked"] < row["shards"] and not row.get("afar"):
            found = f"{row['place']}: {row['checked']} of {row['shards']} shards checked in time, all right"
            verdicts.append(Verdict("shards", name, WARNING, found, "raise --seconds to check them all"))
    if not verdicts:
        row = next(iter(rows.values()))
        found = f"{row['place']}: {row['shards']} shards, {_size(row['bytes'])}, as their SHA-256 says"
        if row.get("afar"):
            found = f"{row['place']}: index of {row['shards']} shards, and one shard as its SHA-256 says"
        verdicts.append(Verdict("shards", _all(rows), OK, found))
    return verdicts


def _all(names: Iterable[str]) -> str:
    known = list(names)
    return known[0] if len(known) == 1 else f"all {len(known)} hosts"


def _size(count: float) -> str:
    if count >= _GIB:
        return f"{count / _GIB:,.1f} GiB"
    return f"{count / _MIB:,.1f} MiB" if count >= _MIB else f"{count / 1024:,.0f} KiB"
