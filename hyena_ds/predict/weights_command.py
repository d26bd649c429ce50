"""`hyena-ds weights show|convert|check|download`: what a file of weights is, another form of it, and whether it is right."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyena_ds.config.limits import whole_number
from hyena_ds.errors import UserError
from hyena_ds.files.whole import aside, write_whole
from hyena_ds.predict.options import add_model
from hyena_ds.text import aligned

if TYPE_CHECKING:
    from hyena_ds.weights.reading import Weights

DIFFERS = 1
"""Exit code of `check` where a number differs."""


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands to the parser of `hyena-ds weights`; each sets `run`, a function of the parsed arguments."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    show = _command(commands, "show", "say what weights are: layout, shape, vocabulary, shift, SHA-256", _show)
    show.add_argument("--keys", action="store_true", help="also list every key of the file, with type and shape")
    convert = _command(commands, "convert", "write weights.safetensors under the published key names", _convert)
    convert.add_argument("output", metavar="OUT", help="the file to write, or a directory for a weights.safetensors")
    convert.add_argument("--overwrite", action="store_true", help="replace the file where it is there already")
    convert.add_argument(
        "--maximum-context",
        type=whole_number,
        metavar="N",
        help="extend the model to N tokens, as --extension says",
    )
    convert.add_argument(
        "--extension",
        choices=("rescale", "extrapolate"),
        help="stretch the filter over the longer context, or keep it as it is and let it fade on",
    )
    check = _command(commands, "check", "compare with numbers that others got from the published weights", _check)
    check.add_argument(
        "--outputs", metavar="FILE", help="numbers to compare with (default: the published model's of this shape)"
    )
    check.add_argument("--genome", metavar="FASTA", help="hg38, for numbers that are losses of its regions")
    _add_download(commands)


def _command(commands: Any, name: str, about: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about)
    add_model(parser)
    parser.add_argument("--json", metavar="PATH", help="also write what is found to a JSON file")
    parser.set_defaults(run=run)
    return parser


def _add_download(commands: Any) -> None:
    from hyena_ds.weights.names import PUBLISHED

    download = commands.add_parser("download", help="fetch published weights from the Hugging Face hub")
    download.add_argument("name", metavar="NAME", help=f"one of {', '.join(PUBLISHED)}")
    download.add_argument(
        "--revision", metavar="R", help="commit, tag or branch (default: the known commit, else the newest)"
    )
    download.add_argument("--output", metavar="DIR", help="new directory (default: hyenadna-NAME)")
    download.set_defaults(run=_download)


def _show(parsed: argparse.Namespace) -> int:
    weights = _read(parsed)
    about = described(weights)
    rows = [[name.replace("_", " "), _shown(value)] for name, value in about.items() if name != "keys"]
    print("\n".join(aligned(rows, left=(0, 1))))
    if parsed.keys:
        print(
            "\n".join(["", *aligned([[key, *map(str, what)] for key, what in about["keys"].items()], left=(0, 1, 2))])
        )
    _write_json(parsed.json, about)
    return 0


def described(weights: Weights) -> dict[str, Any]:
    """What there is to say of weights."""
    from hyena_ds.data.shards import sha256_of
    from hyena_ds.genome.tokenizer import LETTERS, SPECIALS, VOCABULARY

    config = weights.config
    tokens = sorted({**SPECIALS, **LETTERS}.items(), key=lambda item: item[1])
    return {
        "file": str(weights.path),
        "layout": weights.layout,
        "width": config.width,
        "layers": config.layers,
        "inner_width": config.mlp_width,
        "maximum_context": config.maximum_context,
        "extension": f"{config.extension} from {config.extended_from}" if config.extension else None,
        "filter_width": config.filter_width,
        "filter_features": config.filter_features,
        "shift": config.filter_shift,
        "shift_from": weights.shift_from,
        "parameters": sum(parameter.numel() for parameter in weights.parameters.values()),
        "vocabulary": f"{' '.join(token for token, _ in tokens)} (0 to {len(tokens) - 1} of {VOCABULARY} rows)",
        "sha256": sha256_of(weights.path),
        "left_out": list(weights.left_out),
        "keys": {key: (dtype, list(shape)) for key, (dtype, shape) in weights.keys.items()},
    }


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)


def _convert(parsed: argparse.Namespace) -> int:
    from hyena_ds.weights.extension import extended
    from hyena_ds.weights.published import write_weights

    output = Path(parsed.output)
    output = output / "weights.safetensors" if output.is_dir() else output
    if output.exists() and not (parsed.overwrite and output.is_file()):
        raise UserError(f"{output}: is there already; name another file, or replace it with --overwrite")
    weights = extended(_read(parsed), parsed.maximum_context, parsed.extension)
    output.parent.mkdir(parents=True, exist_ok=True)
    with aside(output) as partial:
        write_weights(partial, weights.config, weights.parameters)
    config = weights.config
    print(
        f"{output}: width {config.width}, {config.layers} layers, {config.maximum_context:,} tokens, shift {config.filter_shift:g}"
    )
    _write_json(parsed.json, described(weights) | {"written": str(output)})
    return 0


def _check(parsed: argparse.Namespace) -> int:
    from hyena_ds.predict.predictor import Predictor
    from hyena_ds.predict.weights_check import TOLERANCE, check_outputs
    from hyena_ds.weights.outputs import read_outputs, shipped_outputs

    weights = _read(parsed)
    recorded = read_outputs(Path(parsed.outputs)) if parsed.outputs else shipped_outputs(weights.config)
    verdict = check_outputs(Predictor(weights.model()), recorded, Path(parsed.genome) if parsed.genome else None)
    print(f"{weights.path}, shift {weights.config.filter_shift:g} ({weights.shift_from})")
    print(f"against {recorded.model or recorded.path} ({recorded.source or 'no source named'})")
    rows = [["", "numbers", "largest difference"]]
    rows += [
        [row.what, str(row.numbers), f"{row.difference:.2e}{'' if row.agrees else ' differs'}"] for row in verdict.rows
    ]
    print("\n".join(aligned(rows, left=(0, 2))))
    for line in verdict.left:
        print(f"not checked: {line}")
    judged = "agrees" if verdict.agrees else "DIFFERS"
    print(f"{judged}: the largest difference is {verdict.largest:.2e}, wanted at most {TOLERANCE:g}")
    _write_json(
        parsed.json,
        {
            "file": str(weights.path),
            "shift": weights.config.filter_shift,
            "shift_from": weights.shift_from,
            "model": recorded.model,
            "agrees": verdict.agrees,
            "largest_difference": verdict.largest if math.isfinite(verdict.largest) else None,
            "tolerance": TOLERANCE,
            "rows": {row.what: row.difference if math.isfinite(row.difference) else None for row in verdict.rows},
            "not_checked": list(verdict.left),
        },
    )
    return 0 if verdict.agrees else DIFFERS


def _download(parsed: argparse.Namespace) -> int:
    from hyena_ds.weights.hub import download

    found = download(parsed.name, parsed.revision, Path(parsed.output) if parsed.output else None)
    known = "as known" if found.known else "not known before: nothing says that it is right"
    print(f"{found.directory}: {found.repository} at {found.revision}")
    print(f"model.safetensors has the SHA-256 {found.sha256} ({known})")
    return 0


def _read(parsed: argparse.Namespace) -> Weights:
    from hyena_ds.checkpoints.weights import read_aloud

    return read_aloud(parsed.model, parsed.shift)


def _write_json(path: str | None, content: dict[str, Any]) -> None:
    if path is not None:
        write_whole(Path(path), json.dumps(content, indent=1) + "\n")
