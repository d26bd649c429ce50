"""`hyena-ds export MODEL OUT`: a trained model as a folder that other programs open.

weights of a run, a checkpoint or a file --> files of the format, model card --written aside, renamed--> OUT
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hyena_ds.config.model import ModelConfig
from hyena_ds.errors import UserError
from hyena_ds.files.whole import aside, sync_directory
from hyena_ds.predict.options import add_model
from hyena_ds.runs.origin import Origin, find_origin
from hyena_ds.runs.trained_on import TRAINING, training_of
from hyena_ds.text import in_tokens

FORMATS = ("huggingface", "published")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hyena-ds export`; sets `run`, a function of the parsed arguments."""
    add_model(parser)
    parser.add_argument("output", metavar="OUT", help="folder to write; must not exist yet")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="huggingface: opened by transformers with trust_remote_code=True (the default); published: config.json and "
        "weights.ckpt, opened by the code of HazyResearch/hyena-dna",
    )
    parser.set_defaults(run=_export)


def _export(parsed: argparse.Namespace) -> int:
    output = Path(parsed.output)
    config, files = export(parsed.model, output, parsed.format, parsed.shift)
    for name, size in files.items():
        print(f"{size:>13,}  {name}")
    print(
        f"written: {output} ({config.layers} layers, width {config.width}, contexts to {in_tokens(config.maximum_context)})"
    )
    return 0


def export(
    model: str | Path, output: Path, form: str, shift: float | None = None
) -> tuple[ModelConfig, dict[str, int]]:
    """Write the folder `output`, whole or not at all; (the model's shape, bytes of each file by name).

    Raises UserError where there is no model, or something has this name already; OSError where it cannot be written.
    """
    from hyena_ds.checkpoints.manifest import write_file
    from hyena_ds.checkpoints.weights import find_weights, read_aloud
    from hyena_ds.predict.model_card import ends_sequences, model_card
    from hyena_ds.weights.heads import read_head
    from hyena_ds.weights.huggingface.folder import huggingface_files
    from hyena_ds.weights.published_folder import published_files

    if os.path.lexists(output):
        raise UserError(f"{output}: exists already, wanted a new folder; name another, or remove it")
    loaded = read_aloud(model, shift)  # its tensors are the file, mapped
    origin = find_origin(model)
    training = None
    with suppress(UserError):  # of weights that stand alone nobody knows it
        training = training_of(model)
    config = _with_dropout(loaded.config, origin)
    parameters = loaded.parameters
    files: dict[str, Iterable[bytes | memoryview]]
    if form == "huggingface":
        head = read_head(find_weights(model))
        files = huggingface_files(config, parameters, ends_sequences(origin), head)
        count = sum(parameter.numel() for parameter in parameters.values())
        files["README.md"] = [model_card(output.absolute().name, config, count, origin, training, head).encode()]
        weights = "model.safetensors"
    else:
        files = {name: [content] for name, content in published_files(config, parameters).items()}
        weights = "weights.ckpt"
    output.parent.mkdir(parents=True, exist_ok=True)
    with aside(output) as partial:
        partial.mkdir()
        written = {name: write_file(partial / name, chunks) for name, chunks in files.items()}
        if training is not None:
            text = training.text(weights, written[weights].sha256)
            written[TRAINING] = write_file(partial / TRAINING, [text.encode()])
        sync_directory(partial)
    sync_directory(output.absolute().parent)
    return config, {name: each.bytes for name, each in written.items()}


def _with_dropout(config: ModelConfig, origin: Origin | None) -> ModelConfig:
    """The shape with the dropout of its training, which a weights file does not know."""

    def trained(name: str, otherwise: float) -> float:
        found = origin.setting("model", name) if origin else None
        return float(found) if isinstance(found, int | float) else otherwise

    return replace(
        config,
        embedding_dropout=trained("embedding_dropout", config.embedding_dropout),
        residual_dropout=trained("residual_dropout", config.residual_dropout),
    )
