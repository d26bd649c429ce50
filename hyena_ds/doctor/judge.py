"""Facts of every host --> verdicts: what differs, what is missing, what is too little. Nothing is asked here.

The hosts are compared with each other, and with what the run's config needs. ranks_judge.py judges what ranks found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hyena_ds.doctor.hosts import Probed
from hyena_ds.doctor.verdict import Level, Verdict

STATE_BYTES = 16
"""Of a checkpoint, a parameter: it, two moments, and it again in weights.safetensors; float32."""
CLOCK_WARNS, CLOCK_WRONG = 1.0, 60.0
"""Seconds."""
SLOW_WRITING = 50e6
"""Bytes a second."""
_GIB, _MIB = 2**30, 2**20


def unreachable(hosts: Sequence[Probed]) -> list[Verdict]:
    """A verdict for each host that said nothing of itself."""
    to_do = "try `ssh HOST true`; it needs no password, and the same directory and Python as here at the same paths"
    return [
        Verdict("host", host.name, Level.WRONG, f"cannot be looked at: {host.problems['host']}", to_do)
        for host in hosts
        if "host" in host.problems
    ]


def versions(hosts: Sequence[Probed]) -> list[Verdict]:
    """Python, packages and source are those of most hosts."""
    known = {host.name: _versions(host) for host in hosts if "host" in host.facts}
    verdicts = [
        Verdict("versions", host.name, Level.WRONG, f"torch: {host.problems['devices']}", "install torch there")
        for host in hosts
        if "host" in host.facts and "devices" in host.problems
    ]
    common: dict[str, str] = {}
    for name in dict.fromkeys(name for found in known.values() for name in found):
        most, count = Counter(found[name] for found in known.values() if name in found).most_common(1)[0]
        common[name] = most
        for host, found in known.items():
            if found.get(name, most) != most:
                others = f"{count} other {'host has' if count == 1 else 'hosts have'}"
                to_do = "install the same everywhere" if name != "source" else "bring the same source to every host"
                verdicts.append(
                    Verdict("versions", host, Level.WRONG, f"{name} {found[name]}, where {others} {most}", to_do)
                )
    if known and not verdicts:
        shown = ", ".join(f"{name} {version}" for name, version in common.items())
        verdicts.append(Verdict("versions", _all(known), Level.OK, shown))
    return verdicts


def _versions(host: Probed) -> dict[str, str]:
    facts = host.facts["host"]
    found = {"python": facts["python"], "hyena-ds": facts["hyena-ds"], "source": facts["source"], **facts["packages"]}
    if "devices" in host.facts:
        found["torch"] = f"{host.facts['devices']['torch']} ({host.facts['devices']['build']})"
    return found


def devices(hosts: Sequence[Probed], slots: Sequence[int]) -> list[Verdict]:
    """Each host has what its ranks compute on."""
    verdicts = []
    kinds = Counter(tuple(sorted(set(host.facts["devices"]["devices"]))) for host in hosts if "devices" in host.facts)
    for host, ranks in zip(hosts, slots, strict=True):
        if "devices" not in host.facts:
            continue
        found, here = host.facts["devices"], host.facts["host"]
        gpus, cores = found["devices"], found["cores"]
        shown = f"{_counted(gpus)}, " if gpus else "no GPU, "
        shown += f"{cores} {'core' if cores == 1 else 'cores'}, {here['memory_gib']} GiB, for {_ranks(ranks)}"
        level, to_do = Level.OK, ""
        if gpus and len(gpus) < ranks:
            level, to_do = Level.WRONG, f"let at most {len(gpus)} ranks start there, or let them see more GPUs"
        elif not gpus and "nvidia-smi" in here["programs"]:
            level, to_do = (
                Level.WARNING,
                f"nvidia-smi is there, but torch ({found['build']}) sees no GPU: install a torch with CUDA",
            )
        elif not gpus and cores < ranks:
            level, to_do = Level.WARNING, "fewer cores than ranks: they will wait for each other"
        elif tuple(sorted(set(gpus))) != kinds.most_common(1)[0][0]:
            level, to_do = Level.WARNING, "other devices than on most hosts: all ranks go at the pace of the slowest"
        verdicts.append(Verdict("devices", host.name, level, shown, to_do))
    return verdicts


def clocks(hosts: Sequence[Probed]) -> list[Verdict]:
    """Clocks agree with this machine's."""
    verdicts, largest = [], 0.0
    known = {host.name: host.facts["clock"] for host in hosts if isinstance(host.facts.get("clock"), tuple)}
    for name, (ahead, error) in known.items():
        off = max(0.0, abs(ahead) - error)
        largest = max(largest, abs(ahead) + error)
        if off > CLOCK_WARNS:
            level = Level.WRONG if off > CLOCK_WRONG else Level.WARNING
            way = "ahead of" if ahead > 0 else "behind"
            to_do = "set the clock (chrony, ntpd): times in logs and files of the hosts cannot be compared"
            verdicts.append(Verdict("clock", name, level, f"{abs(ahead):.1f} s {way} this machine's", to_do))
    if known and not verdicts:
        verdicts.append(Verdict("clock", _all(known), Level.OK, f"within {largest:.3f} s of this machine's"))
    return verdicts


def disks(hosts: Sequence[Probed], parameters: int | None, checkpoints_kept: int) -> list[Verdict]:
    """There is room for the run's checkpoints, it is written fast enough, and all hosts see the same directory."""
    verdicts = []
    one = STATE_BYTES * (parameters or 0)
    for host in hosts:
        if "disk" in host.problems:
            to_do = "make room there, or choose another `output`"
            verdicts.append(Verdict("run directory", host.name, Level.WRONG, host.problems["disk"], to_do))
        if "disk" not in host.facts:
            continue
        disk = host.facts["disk"]
        rate = disk["written"] / disk["seconds"]
        found = f"{disk['place']}: {_size(disk['free'])} free, written at {rate / 1e6:,.0f} MB/s"
        level, to_do = Level.OK, ""
        if parameters is not None:
            found += f"; a checkpoint takes {_size(one)}, {checkpoints_kept} are kept"
        if disk["free"] < max(2 * one, _MIB):
            level, to_do = Level.WRONG, "the disk is full: make room, or choose another `output`"
        elif disk["free"] < (checkpoints_kept + 2) * one:
            level, to_do = (
                Level.WARNING,
                "too little for the checkpoints that are kept: make room, or lower checkpoint.keep_last",
            )
        elif rate < SLOW_WRITING and one > 20 * rate:
            level, to_do = (
                Level.WARNING,
                f"a checkpoint takes {one / rate:.0f} s to write: choose a faster disk for `output`",
            )
        verdicts.append(Verdict("run directory", host.name, level, found, to_do))
    return verdicts + _shared(hosts)


def _shared(hosts: Sequence[Probed]) -> list[Verdict]:
    looked = [host for host in hosts if "seen" in host.facts and "disk" in host.facts]
    everybody = {host.facts["host"]["name"] for host in looked}
    verdicts = []
    for host in looked:
        unseen = sorted(everybody - set(host.facts["seen"]))
        if unseen:
            found = f"does not see what {', '.join(unseen)} wrote to {host.facts['disk']['place']}"
            to_do = "name a directory as `output` that all hosts share: a checkpoint is written by all of them"
            verdicts.append(Verdict("run directory", host.name, Level.WRONG, found, to_do))
    return verdicts


def configs(hosts: Sequence[Probed]) -> list[Verdict]:
    """Every host reads the same config."""
    known = {host.name: host.facts["config"]["digest"] for host in hosts if "config" in host.facts}
    verdicts = [
        Verdict("config", host.name, Level.WRONG, host.problems["config"], "correct it, or bring it to this host")
        for host in hosts
        if "config" in host.problems
    ]
    most = Counter(known.values()).most_common(1)[0][0] if known else ""
    verdicts += [
        Verdict(
            "config", name, Level.WRONG, "reads other settings than most hosts", "bring the same file to every host"
        )
        for name, digest in known.items()
        if digest != most
    ]
    return verdicts


def shards(hosts: Sequence[Probed]) -> list[Verdict]:
    """Every source is readable, right and the same on every host."""
    verdicts = [
        Verdict("shards", host.name, Level.WRONG, host.problems["shards"], "see to its disk, or raise --seconds")
        for host in hosts
        if "shards" in host.problems
    ]
    looked = [host for host in hosts if "shards" in host.facts]
    for number in range(len(looked[0].facts["shards"]) if looked else 0):
        rows = {host.name: host.facts["shards"][number] for host in looked}
        verdicts += _source(rows)
    return verdicts


def _source(rows: dict[str, dict[str, Any]]) -> list[Verdict]:
    verdicts = []
    indices = Counter(row["index"] for row in rows.values() if "index" in row)
    most = indices.most_common(1)[0][0] if indices else None
    for name, row in rows.items():
        if row.get("index", most) != most:
            found = f"{row['place']}: index.json is another than on most hosts"
            verdicts.append(Verdict("shards", name, Level.WRONG, found, "copy the same shards to every host"))
        if row["bad"]:
            more = f" (and {len(row['bad']) - 1} more)" if len(row["bad"]) > 1 else ""
            verdicts.append(Verdict("shards", name, Level.WRONG, row["bad"][0] + more, "copy them again to this host"))
        elif row["checked"] < row["shards"] and not row.get("afar"):
            found = f"{row['place']}: {row['checked']} of {row['shards']} shards checked in time, all right"
            verdicts.append(Verdict("shards", name, Level.WARNING, found, "raise --seconds to check them all"))
    if not verdicts:
        row = next(iter(rows.values()))
        found = f"{row['place']}: {row['shards']} shards, {_size(row['bytes'])}, as their SHA-256 says"
        if row.get("afar"):
            found = f"{row['place']}: index of {row['shards']} shards, and one shard as its SHA-256 says"
        verdicts.append(Verdict("shards", _all(rows), Level.OK, found))
    return verdicts


def _all(names: Any) -> str:
    known = list(names)
    return known[0] if len(known) == 1 else f"all {len(known)} hosts"


def _ranks(count: int) -> str:
    return f"{count} {'rank' if count == 1 else 'ranks'}"


def _counted(names: list[str]) -> str:
    return "; ".join(f"{count} x {name}" for name, count in Counter(names).items())


def _size(count: float) -> str:
    if count >= _GIB:
        return f"{count / _GIB:,.1f} GiB"
    return f"{count / _MIB:,.1f} MiB" if count >= _MIB else f"{count / 1024:,.0f} KiB"
