"""Builds a directory of shards that is complete or does not exist.

    config --identify--> OUTPUT.partial/prep.json --open_genome, divide, plan--> planned shards
      planned shards --any number of processes--> OUTPUT.partial/shards/*.tar, each with its record
      records --finish--> OUTPUT.partial/complete (tars by final name, index, summary) --rename--> OUTPUT

A run that ends early leaves OUTPUT.partial, and the same command goes on from it. A mistake of the user leaves nothing.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data_prep.config import PrepConfig
from data_prep.identity import RECORD_NAME, Identity, identify, read_identity
from data_prep.plan import PlannedShard, plan_shards
from data_prep.regions import Division, divide
from data_prep.summary import LEAKS_NAME, SUMMARY_NAME, Summary
from data_prep.writer import Interrupted, Job, ShardRecord, write_shards
from hyena_ds.data.chunks import Chunks
from hyena_ds.data.shards import INDEX_NAME, Shard, ShardIndex, read_index, sha256_of
from hyena_ds.errors import UserError, say
from hyena_ds.files.whole import sync_directory, write_whole
from hyena_ds.genome.fasta import Genome, open_genome
from hyena_ds.genome.scan import RecordScan

_say = partial(say, who="hyena-ds prep")


def build(config: PrepConfig, config_name: str) -> str:
    """Write the shards of `config` (read from the file `config_name`); returns what to tell the user.

    Raises UserError for bad input or an output that is not ours, and Interrupted (which leaves work to resume) when a
    worker was killed or the disk is full.
    """
    output = Path(config.output)
    partial = output.with_name(output.name + ".partial")
    identity = identify(config)
    if _is_complete(output, identity):
        _remove_leftover(partial, identity)
        return f"{output} is complete: the same config and input made it; nothing to do"
    with _work_directory(partial, identity) as work:
        opened = open_genome(Path(config.fasta), work, config.limits.fasta_bytes)
        genome = opened.genome
        if opened.renewed:
            earlier = "that of an earlier version, which counted blanks or line ends of the FASTA as bases"
            _say(f"{work}: discarding the unfinished work: it is {earlier}")
            shutil.rmtree(work / "complete", ignore_errors=True)
            shutil.rmtree(work / "shards")
            (work / "shards").mkdir()
        division = divide(config, config_name, genome)
        genome.close()
        _refuse_other_letters(config, division, opened.records)
        plan = plan_shards(division.regions, config.chunk_length, config.chunks_per_shard)
        records = _write(config, genome, plan, work)
        if identify(config) != identity:
            raise UserError(f"{config.fasta}: the input changed while it was read; run the same command again")
        made = _finish(config, config_name, identity, division, plan, records, opened.blanks, work)
        _publish(work / "complete", output)
    return made.short(output)


def _is_complete(output: Path, identity: Identity) -> bool:
    try:
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return False
        made = read_identity(output) if output.is_dir() else None
        if made is None:
            raise UserError(
                f"{output}: exists and holds no shards of this program; name another 'output', or move it away"
            )
        if made != identity:
            raise UserError(
                f"{output}: holds shards of another config or input ({made.difference(identity)}); "
                "name another 'output', or remove that directory"
            )
        read_index(output)
        return True
    except OSError as error:
        raise UserError(f"{output}: cannot be looked at ({error.strerror}); name another 'output'") from None


def _remove_leftover(partial: Path, identity: Identity) -> None:
    """What a run leaves that was interrupted between its last rename and its last clean-up. Other work stays."""
    left = read_identity(partial)
    if left == identity:
        shutil.rmtree(partial)
    elif left is not None:
        why = left.difference(identity)
        _say(
            f"{partial}: unfinished work of another config or input ({why}) is left there; remove it, or build with that config"
        )


@contextmanager
def _work_directory(partial: Path, identity: Identity) -> Iterator[Path]:
    """OUTPUT.partial, locked; removed at the end and after a user's mistake, kept after any other interruption."""
    created: list[Path] = []
    try:
        created = [parent for parent in partial.parents if not parent.exists()]  # the innermost first
        made = _open_partial(partial)
        lock = os.open(partial, os.O_RDONLY)
    except OSError as error:
        for directory in created:
            with suppress(OSError):
                directory.rmdir()
        raise UserError(
            f"{partial}: cannot make the directory, or look into it ({error.strerror}); name another 'output'"
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Interrupted(f"{partial}: another prep is writing it; wait for it, or name another 'output'") from None
        if made != identity:
            if made is not None:
                why = made.difference(identity)
                _say(f"{partial}: discarding the unfinished work of another config or input ({why})")
            for stale in partial.iterdir():
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
            identity.write(partial)
        (partial / "shards").mkdir(exist_ok=True)
        yield partial
    except Interrupted:
        raise
    except UserError:
        shutil.rmtree(partial)
        for directory in created:
            directory.rmdir()
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Interrupted(
                f"{partial}: the disk is full; make room and run the same command again to resume"
            ) from None
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG):
            raise
        raise Interrupted(
            f"{error.filename or partial}: cannot be written ({error.strerror}); make it writable and run the same "
            "command again to resume"
        ) from None
    finally:
        os.close(lock)
    shutil.rmtree(partial)


def _open_partial(partial: Path) -> Identity | None:
    """Make sure the directory is there and ours; what the work in it is made from, if there is any."""
    partial.mkdir(parents=True, exist_ok=True)
    made = read_identity(partial)
    if made is None and any(path.name not in (RECORD_NAME, f".{RECORD_NAME}.partial") for path in partial.iterdir()):
        raise UserError(f"{partial}: exists and is not the work of an interrupted prep; move it away")
    return made


def _refuse_other_letters(config: PrepConfig, division: Division, scans: Sequence[RecordScan]) -> None:
    if config.other_letters != "refuse":
        return
    used = {region.chromosome for region in division.regions}
    for scan in scans:
        if scan.name in used and scan.others:
            listed = ", ".join(f"{count} {name}" for name, count in scan.others.items())
            raise UserError(
                f"{config.fasta}: record '{scan.name}' holds letters that are neither A C G T N nor IUPAC codes "
                f"({listed}), and 'other_letters' is refuse; correct them, or set it to unknown or n"
            )


def _write(config: PrepConfig, genome: Genome, plan: Sequence[PlannedShard], work: Path) -> list[ShardRecord]:
    """Records of every planned shard, written now or by the run that was interrupted."""
    found = {shard.position: _finished(work, shard) for shard in plan}
    records = {position: record for position, record in found.items() if record is not None}
    missing = [shard for shard in plan if shard.position not in records]
    job = Job(genome.path, genome.index, config.assembly, config.token_table(), work / "shards")
    with tqdm(total=sum(shard.bases for shard in plan), unit="base", unit_scale=True, desc="shards") as bar:
        bar.update(sum(shard.bases for shard in plan if shard.position in records))
        for shard, record in write_shards(job, missing, config.workers):
            records[shard.position] = record
            bar.update(shard.bases)
    return [records[shard.position] for shard in plan]


def _finished(work: Path, shard: PlannedShard) -> ShardRecord | None:
    """The record of a shard that an interrupted run completed, wherever its tar lies by now."""
    path = work / "shards" / f"{shard.name}.json"
    if not path.is_file():
        return None
    record = ShardRecord.from_json(path.read_text(encoding="utf-8"))
    tar = path.with_suffix(".tar")
    if not record.chunks or ((work / "complete").exists() and not tar.exists()):
        return record
    whole = tar.is_file() and tar.stat().st_size == record.bytes and sha256_of(tar) == record.sha256
    return record if whole else None


def _finish(
    config: PrepConfig,
    config_name: str,
    identity: Identity,
    division: Division,
    plan: Sequence[PlannedShard],
    records: Sequence[ShardRecord],
    blanks: int,
    work: Path,
) -> Summary:
    """Fill WORK/complete: tars under their final names, index, summary. May be interrupted and begun again."""
    written = {record.split for record in records if record.chunks}
    empty = [split for split in config.required_splits if split not in written]
    if empty:
        raise UserError(
            f"{config_name}: every chunk of the split {' and '.join(empty)} holds only N; give it other regions, "
            "or change 'required_splits'"
        )
    complete = work / "complete"
    complete.mkdir(exist_ok=True)
    shards: list[Shard] = []
    chunks = []
    for planned, record in zip(plan, records, strict=True):
        if not record.chunks:
            continue
        number = sum(shard.split == record.split for shard in shards)
        name = f"{record.split}-{number:06d}.tar"
        source = work / "shards" / f"{planned.name}.tar"
        if source.exists():
            os.replace(source, complete / name)
        chunks += [dataclasses.replace(chunk, shard=len(shards)) for chunk in record.chunks]
        shards.append(Shard(name, record.split, record.bytes, record.sha256))
    index = ShardIndex(config.assembly, config.chunk_length, tuple(shards), Chunks(chunks))
    write_whole(complete / INDEX_NAME, index.to_json())
    made = Summary(identity, division, plan, index, records, blanks)
    write_whole(complete / SUMMARY_NAME, made.full())
    if division.leaks:
        write_whole(complete / LEAKS_NAME, "".join(f"{leak.describe()}\n" for leak in division.leaks))
    identity.write(complete)
    read_index(complete)  # what is about to be published: sizes by the index, and chunks in ascending places
    return made


def _publish(complete: Path, output: Path) -> None:
    sync_directory(complete)
    os.rename(complete, output)
    sync_directory(output.parent)
