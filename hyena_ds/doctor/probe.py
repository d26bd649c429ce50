"""One host looks at itself:  python -m hyena_ds.doctor.probe

    a JSON object a line on standard input: what to look at --> an answer, a line each, on standard output

hosts.py speaks with it, over ssh or a pipe. What is printed by others on the way is told apart by MARK.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from hyena_ds.errors import UserError

MARK = "@hyena-ds-doctor "
PACKAGES = ("deepspeed", "numpy", "safetensors")
WRITTEN_BYTES = 256 << 20
_BLOCK_BYTES = 4 << 20
_WRITING_SECONDS = 3.0


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        work = _ANSWERS[request.pop("do")]
        try:
            answer = {"answer": work(**request)}
        except Exception as error:  # of whatever kind: it is this host's answer
            text = str(error) or type(error).__name__
            answer = {"problem": text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"}
        say(answer)


def say(answer: dict[str, Any]) -> None:
    """One line, in one piece: several ranks may share an output."""
    os.write(1, f"{MARK}{json.dumps(answer)}\n".encode())


def _host() -> dict[str, Any]:
    return {
        "name": socket.gethostname(),
        "python": platform.python_version(),
        "hyena-ds": importlib.import_module("hyena_ds").__version__,
        "source": _source_digest(),
        "packages": {name: _version(name) for name in PACKAGES},
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "programs": [name for name in ("pdsh", "ssh", "nvidia-smi") if shutil.which(name)],
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _source_digest() -> str:
    """A digest of the package's source, as it lies here."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def clock() -> float:
    """This host's clock: the time of day, in seconds."""
    return datetime.now(UTC).timestamp()


def _devices() -> dict[str, Any]:
    """Torch, and what it computes on; imported here, as every rank will."""
    import torch

    from hyena_ds.parallel.devices import device_count
    from hyena_ds.runtime.local_ranks import usable_cores

    devices = [torch.cuda.get_device_properties(number) for number in range(device_count())]
    return {
        "torch": torch.__version__,
        "build": torch.version.cuda or "no CUDA",
        "devices": [f"{device.name}, {device.total_memory / 2**30:.0f} GiB" for device in devices],
        "cores": len(usable_cores()),
    }


def _config(config: str, overrides: list[str]) -> dict[str, Any]:
    """What the host makes of the config."""
    from hyena_ds.config.loading import dump_yaml, to_plain
    from hyena_ds.redaction import kept
    from hyena_ds.tasks.deriving import load_run

    text = dump_yaml(kept(to_plain(load_run(config, overrides))))
    return {"digest": hashlib.sha256(text.encode()).hexdigest()[:12]}


def _disk(directory: str, name: str) -> dict[str, Any]:
    """Free space where `directory` is or will be, and how fast a file is written there; the file NAME.HOST stays."""
    file = _file(directory, name)
    free = shutil.disk_usage(file.parent).free
    wanted = min(WRITTEN_BYTES, free // 2)
    block = os.urandom(_BLOCK_BYTES)
    written, began = 0, time.perf_counter()
    try:
        with file.open("wb", buffering=0) as out:
            while written < wanted and time.perf_counter() - began < _WRITING_SECONDS:
                written += out.write(block[: wanted - written])
            os.fsync(out.fileno())
    except OSError:
        file.unlink(missing_ok=True)
        raise
    seconds = time.perf_counter() - began
    os.truncate(file, 0)
    return {"place": directory, "free": free, "written": written, "seconds": seconds}


def _seen(directory: str, name: str) -> list[str]:
    """The hosts whose files are seen here."""
    return sorted(path.name.removeprefix(f"{name}.") for path in _file(directory, name).parent.glob(f"{name}.*"))


def _clean(directory: str, name: str) -> None:
    _file(directory, name).unlink(missing_ok=True)


def _file(directory: str, name: str) -> Path:
    """This host's file in the directory, or in the nearest above it that exists."""
    wanted = Path(directory).absolute()
    place = next(place for place in (wanted, *wanted.parents) if place.is_dir() or place == place.parent)
    return place / f"{name}.{socket.gethostname()}"


def _shards(config: str, overrides: list[str], seconds: float) -> list[dict[str, Any]]:
    """Every source's index, and which of its shards are not as the index says, as far as the time allows."""
    from hyena_ds.config.remote import is_afar
    from hyena_ds.redaction import shown
    from hyena_ds.tasks.deriving import load_run

    loaded = load_run(config, overrides)
    ends = time.monotonic() + seconds
    look = {True: _look_afar, False: _look_here}
    found: list[dict[str, Any]] = []
    for source in loaded.data.sources:
        row: dict[str, Any] = {"place": shown(source.shards), "bad": [], "checked": 0, "shards": 0, "bytes": 0}
        try:
            look[is_afar(source.shards)](loaded, source.shards, row, ends)
        except UserError as error:
            row["bad"].append(str(error))
        found.append(row)
    return found


def _look_here(loaded: Any, place: str, row: dict[str, Any], ends: float) -> None:
    from hyena_ds.data.shards import INDEX_NAME, read_index, sha256_of, verify_shard

    with contextlib.suppress(OSError):
        row["index"] = sha256_of(Path(place) / INDEX_NAME)[:12]
    shards = read_index(place).shards
    row["shards"] = len(shards)
    for shard in shards:
        if time.monotonic() > ends:
            return
        try:
            verify_shard(place, shard)
        except (OSError, UserError) as error:
            row["bad"].append(str(error))
        row["checked"] += 1
        row["bytes"] += shard.bytes


def _look_afar(loaded: Any, place: str, row: dict[str, Any], ends: float) -> None:
    """The index, and one shard through the node's cache."""
    from hyena_ds.data.remote.places import check_room, read_indices
    from hyena_ds.data.remote.shard_cache import ShardCache

    indices = read_indices(loaded.data)
    number = [source.shards for source in loaded.data.sources].index(place)
    row["index"] = hashlib.sha256(indices[number].to_json().encode()).hexdigest()[:12]
    row["shards"] = len(indices[number].shards)
    check_room(loaded.data, indices)
    smallest = min(indices[number].shards, key=lambda shard: shard.bytes)
    with ShardCache(loaded.data.cache).opened(place, smallest):
        row["checked"], row["bytes"] = 1, smallest.bytes
    row["afar"] = True


_ANSWERS: dict[str, Callable[..., Any]] = {
    **{"host": _host, "clock": clock, "devices": _devices, "config": _config},
    **{"disk": _disk, "seen": _seen, "clean": _clean, "shards": _shards},
}

if __name__ == "__main__":
    main()
