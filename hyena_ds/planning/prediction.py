"""`hyena-ds plan predict`: memory of a forward pass, as score, embed and the other verbs need it, before there is one.

model or its shape, context, batch, ranks --predict_memory--> a table by part
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hyena_ds.bench.command import add_option
from hyena_ds.config.limits import (
    MOST_CONTEXT,
    MOST_LAYERS,
    MOST_LOCAL_RANKS,
    MOST_SEQUENCES,
    MOST_WIDTH,
    check_count,
    whole_number,
)
from hyena_ds.config.model import ModelConfig
from hyena_ds.cost.devices import GIB
from hyena_ds.cost.memory import predict_memory
from hyena_ds.cost.shape import StepShape
from hyena_ds.errors import UserError
from hyena_ds.predict.options import MODEL, check_model
from hyena_ds.text import aligned, number

_NAMES = {"weights and optimizer": "weights", "kept": "filters", "layer at work": "activations"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set up the parser of `hyena-ds plan predict`."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help=f"{MODEL}; or --width, --layers")
    add_option(
        parser, "--width", None, "channels of a model that is not there yet", type=whole_number, shown="the model's"
    )
    add_option(parser, "--layers", None, "its blocks", type=whole_number, shown="the model's")
    add_option(parser, "--context", None, "tokens of a sequence", type=whole_number, shown="the model's maximum")
    add_option(parser, "--batch", 1, "sequences of a pass", type=whole_number)
    add_option(parser, "--sequence-parallel", 1, "processes that share a sequence", type=whole_number)
    parser.add_argument("--gpu", action="store_true", help="on a GPU, of which nothing was measured (default: a CPU)")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print the table; returns the exit code."""
    bounds = {"width": MOST_WIDTH, "layers": MOST_LAYERS, "context": MOST_CONTEXT, "batch": MOST_SEQUENCES}
    for name, most in bounds.items():
        check_count(f"--{name}", getattr(parsed, name), most)
    P = parsed.sequence_parallel
    check_count("--sequence-parallel", P, MOST_LOCAL_RANKS)
    config = _config(parsed)
    context = parsed.context or config.maximum_context
    if context > config.maximum_context:
        raise UserError(
            f"--context: found {context:,}, wanted 1 to the model's maximum_context {config.maximum_context:,}"
        )
    if config.width % P:
        raise UserError(f"--sequence-parallel: found {P}, wanted a divisor of the model's width {config.width}")
    padded = -(-context // P) * P
    memory = predict_memory(StepShape(config, padded, parsed.batch, sequence_parallel=P), not parsed.gpu)
    shares = f", cut into {P} slices" if P > 1 else ""
    print(f"a pass of {parsed.batch:,} x {context:,} tokens{shares}: width {config.width}, {config.layers} layers")
    shown = {_NAMES.get(name, name): number(size / GIB) for name, size in memory.parts.items()}
    rows = [["GiB a process", *shown, "sum"], ["", *shown.values(), number(memory.total / GIB)]]
    print("\n".join(aligned(rows, left=[0])))
    return 0


def _config(parsed: argparse.Namespace) -> ModelConfig:
    """The model's shape: a file's, or as the options say."""
    if parsed.model is not None:
        if parsed.width or parsed.layers:
            raise UserError("--width, --layers: found a MODEL too, whose shape is known; leave them out")
        check_model(Path(parsed.model))
        from hyena_ds.checkpoints.weights import load_model

        return load_model(parsed.model).config
    if not (parsed.width and parsed.layers and parsed.context):
        raise UserError("plan predict: found no MODEL, wanted one, or --width, --layers and --context")
    return ModelConfig(width=parsed.width, layers=parsed.layers, maximum_context=max(2, parsed.context))
