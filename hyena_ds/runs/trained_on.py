"""Which bases weights were trained on, and in how long sequences. Takes no torch.

    checkpoint or run --manifest, config, shards.json--> index of its shards, by digest --+--> Training
    exported folder --training.json, by the digest of its weights-------------------------+
    fine-tuned run --initialize_from--> the same of what it began from, and its labelled files

The file goes with an exported model, so that scores of others can say which of their bases it has seen.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyena_ds.checkpoints.manifest import Checkpoint
from hyena_ds.config.remote import is_afar
from hyena_ds.data.identity import SHARDS, ShardList, read_shard_list
from hyena_ds.data.shards import ShardIndex, read_index, sha256_of
from hyena_ds.errors import UserError
from hyena_ds.redaction import shown
from hyena_ds.runs import directory
from hyena_ds.runs.origin import find_checkpoint, run_of

Spans = Mapping[str, Sequence[tuple[int, int]]]
"""Bases [start, end) by chromosome, on the forward strand."""

TRAINING = "training.json"
_FORMAT = "hyena-ds training 1"
_MOST_BYTES = 1 << 26


@dataclass(frozen=True)
class Training:
    """What weights were trained on."""

    bases: Mapping[str, Spans]
    """Training bases by assembly."""
    longest_context: int
    """Tokens of the longest sequences."""
    beginning: str | None
    """The weights that training began from, of which nothing more is known; None where it began from random ones."""
    tuned_on: tuple[tuple[str, str], ...] = ()
    """(name, SHA-256) of the files of labelled sequences that it was fine-tuned on, whose bases have no known place."""

    def text(self, weights: str, digest: str) -> str:
        """The text of training.json beside the file `weights` with this SHA-256."""
        bases = {
            assembly: {name: [list(span) for span in merged(each)] for name, each in spans.items()}
            for assembly, spans in self.bases.items()
        }
        facts: dict[str, Any] = {"longest_context": self.longest_context, "beginning": self.beginning, "bases": bases}
        if self.tuned_on:
            facts["tuned_on"] = [{"file": file, "sha256": sha256} for file, sha256 in self.tuned_on]
        return json.dumps({"format": _FORMAT, "weights": {"file": weights, "sha256": digest}, **facts}) + "\n"


def training_of(model: str | Path) -> Training:
    """What a run, a checkpoint, its weights file or an exported folder was trained on. Raises UserError where nothing says so."""
    checkpoint = find_checkpoint(model)
    if checkpoint is None:
        return _read(Path(model))
    run = run_of(checkpoint)
    listed = read_shard_list(run / SHARDS)
    if listed is None or listed.digest != checkpoint.manifest.shards:
        found = "there is no list" if listed is None else "found another list"
        raise UserError(f"{run / SHARDS}: {found} of the shards that {checkpoint} was trained on")
    if checkpoint.record.config.get("task") is not None:
        return fine_tuned(checkpoint.record.config.get("initialize_from"), listed, _longest(checkpoint), run)
    try:
        places = [str(source["shards"]) for source in checkpoint.record.config["data"]["sources"]]
    except (KeyError, TypeError):
        raise UserError(f"{checkpoint}: its config does not say where its shards are") from None
    if len(places) != len(listed.sources):
        raise UserError(f"{run / SHARDS}: found {len(listed.sources)} sources, and {len(places)} in the config")
    trained: dict[str, Spans] = {}
    for number, place in enumerate(places):
        index = _index(place, run, listed, number)
        spans: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for chunk in index.chunks:
            if chunk.split == "train":
                spans[chunk.chromosome].append((chunk.start, chunk.end))
        for name, each in trained.get(index.assembly, {}).items():
            spans[name] += each
        trained[index.assembly] = spans
    return Training(trained, _longest(checkpoint), checkpoint.record.config.get("initialize_from"))


def fine_tuned(beginning: Any, files: ShardList, longest: int, run: Path) -> Training:
    """What fine-tuning leaves that began from `beginning`, on `files`, in sequences of at most `longest` tokens.

    `beginning` counts from where training was started, as what lies above `run` tells; None is random weights.
    """
    base = Training({}, 0, None if beginning is None else str(beginning))
    for start in (Path(), *run.parents) if beginning is not None else ():
        if (start / str(beginning)).exists():
            with suppress(UserError, RecursionError):
                base = training_of(start / str(beginning))
            break
    shards = [shard for source in files.sources for shard in source.shards if shard.split == "train"]
    tuned_on = (*base.tuned_on, *((shard.file, shard.sha256) for shard in shards))
    return Training(base.bases, max(longest, base.longest_context), base.beginning, tuned_on)


def _index(place: str, run: Path, listed: ShardList, number: int) -> ShardIndex:
    """The index of a source of a run: at the place of its config, which counts from where training was started."""
    if is_afar(place):
        raise UserError(f"{shown(place)}: its shards are on another machine")
    for start in (Path(), *run.parents):
        directory = start / place
        if (directory / "index.json").is_file():
            index = read_index(directory)
            if ShardList.of([index]).sources[0].index == listed.sources[number].index:
                return index
    raise UserError(f"{place}: its shards are not here")


def trained_context(model: str | Path) -> int | None:
    """Tokens of the longest sequences that a model was trained on; None where nothing says so that can be believed.

    Raises UserError where its checkpoint is damaged.
    """
    checkpoint = find_checkpoint(model)
    if checkpoint is not None and checkpoint.record.config.get("task") is None:
        return _longest(checkpoint)
    with suppress(UserError):
        return training_of(model).longest_context
    return None if checkpoint is None else _longest(checkpoint)


def _longest(checkpoint: Checkpoint) -> int:
    begun = directory.recorded_rows(checkpoint)[: checkpoint.record.state.stage + 1]
    if not begun:
        raise UserError(f"{checkpoint}: found no stages in it; take another checkpoint")
    return max(stage.context_length for stage in begun)


def _file(model: Path) -> Path:
    return (model if model.is_dir() else model.parent) / TRAINING


def _read(model: Path) -> Training:
    """What training.json says of an exported folder, or of the weights file in it."""
    file = _file(model)
    if not file.is_file():
        raise UserError(f"{model}: weights on their own, without the run that trained them")
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{file.stat().st_size:,} bytes")
        raw = json.loads(file.read_text(encoding="utf-8"))
        name, digest = str(raw["weights"]["file"]), raw["weights"]["sha256"]
        if raw["format"] != _FORMAT:
            raise ValueError("another format")
        bases = {
            str(assembly): {str(contig): [_span(pair) for pair in each] for contig, each in spans.items()}
            for assembly, spans in raw["bases"].items()
        }
        beginning = raw["beginning"]
        tuned_on = tuple((str(each["file"]), str(each["sha256"])) for each in raw.get("tuned_on", ()))
        beginning = None if beginning is None else str(beginning)
        training = Training(bases, int(raw["longest_context"]), beginning, tuned_on)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file}: cannot be read as what weights were trained on ({error}); export them again"
        ) from None
    weights = file.parent / name
    if Path(name).name != name or (model.is_file() and model.name != name):
        raise UserError(f"{file}: is about '{name}', not about {model.name}")
    if not weights.is_file() or sha256_of(weights) != digest:
        raise UserError(f"{file}: {name} has changed since, so nobody can say what it was trained on")
    return training


def _span(pair: Any) -> tuple[int, int]:
    start, end = pair
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end):
        raise ValueError(f"a stretch of {pair}")
    return start, end


def merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches in their order, those that touch or overlap as one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found
