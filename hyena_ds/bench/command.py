"""The sub-commands of `hyena-ds bench`. Building the parser takes no torch.

step          an optimizer step: this trainer's, beside the published code's, a transformer's, the engine's
convolution   the long convolution, forward and backward, beside autograd's
exchange      activations through channel layout and back, in groups and all at once
loader        samples and tokens a second from shards
prep          megabases a second from FASTA to shards
checkpoint    how long a save keeps training waiting, in the background and not
precision     what rounding one thing to bfloat16 does to a trained model
warmup        loss and seconds of runs with context warmup beside runs without
plot          time and memory of a step against context length, from JSON files
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

from hyena_ds.config.policy import POLICIES

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_commands(parser: argparse.ArgumentParser) -> Commands:
    """Add the sub-commands to the parser of `hyena-ds bench`; each sets `run`, a function of the parsed arguments.

    Returns what other packages add their measurements to.
    """
    commands = parser.add_subparsers(dest="bench_command", required=True, metavar="COMMAND")
    _add_step(commands.add_parser("step", help="an optimizer step, beside other code on request"))
    for name, text in (
        ("convolution", "the long convolution, forward and backward, beside autograd's"),
        ("exchange", "activations through channel layout and back, between ranks"),
    ):
        _add_part(commands.add_parser(name, help=text), name)
    loader = commands.add_parser("loader", help="samples and tokens a second from the shards of a config")
    loader.add_argument("--config", default="configs/quickstart.yaml", help="YAML of a run (default: %(default)s)")
    loader.add_argument("--steps", type=int, default=20, help="optimizer steps to read in each stage (default: 20)")
    _finish(loader, "loader", rounds=3)
    prep = commands.add_parser("prep", help="megabases a second from a random FASTA to shards")
    prep.add_argument("--megabases", type=float, default=5.0, help="length of the FASTA (default: 5)")
    prep.add_argument("--workers", type=int, default=1, help="processes that prepare (default: 1)")
    _finish(prep, "prep", rounds=3)
    checkpoint = commands.add_parser(
        "checkpoint", help="how long a save keeps training waiting, in the background and not"
    )
    checkpoint.add_argument("--width", type=int, nargs="+", default=[256, 1024], help="channels (default: 256 1024)")
    checkpoint.add_argument("--layers", type=int, nargs="+", default=[8, 16], help="blocks (default: 8 16)")
    checkpoint.add_argument("--directory", default=".", help="where to write, for a while (default: here)")
    _finish(checkpoint, "checkpoint", rounds=3)
    precision = commands.add_parser("precision", help="what rounding one thing to bfloat16 does to a trained model")
    precision.add_argument("weights", help="weights.safetensors of a run")
    precision.add_argument("--config", default="configs/quickstart.yaml", help="its YAML (default: %(default)s)")
    precision.add_argument("--windows", type=int, default=8, help="held-out windows (default: 8)")
    _finish(precision, "precision", rounds=1)
    warmup = commands.add_parser("warmup", help="finished runs with context warmup beside runs without")
    warmup.add_argument("runs", nargs="+", metavar="RUN", help="run directories: the same seeds on both sides")
    add_json(warmup)
    warmup.set_defaults(run=measurement("hyena_ds.bench.warmup"), rounds=1)
    plot = commands.add_parser("plot", help="draw JSON files of `bench step`")
    plot.add_argument("results", nargs="+", metavar="RESULTS.json", help="files that --json wrote")
    plot.add_argument("--output", required=True, metavar="PNG", help="image to write")
    plot.set_defaults(run=_plot)
    return commands


def _add_step(step: argparse.ArgumentParser) -> None:
    _add_shape(step)
    step.add_argument("--layers", type=int, default=2, help="blocks (default: 2)")
    step.add_argument("--maximum-context", type=int, help="tokens that the filter spans (default: the context length)")
    step.add_argument("--accumulation", type=int, default=1, help="micro steps of an optimizer step (default: 1)")
    step.add_argument(
        "--sequence-parallel", type=int, nargs="+", default=[1], help="ranks that share a sequence (default: 1)"
    )
    step.add_argument(
        "--policy",
        nargs="+",
        default=["balanced"],
        choices=list(POLICIES),
        help="activation policies (default: balanced)",
    )
    step.add_argument(
        "--precision",
        nargs="+",
        default=["float32"],
        choices=["float32", "bfloat16"],
        help="of projections and MLP (default: float32)",
    )
    step.add_argument(
        "--reference", metavar="DIR", help="also run the published code: a clone of HazyResearch/hyena-dna"
    )
    step.add_argument(
        "--reference-precision", choices=["float32", "bfloat16"], help="of the published code (default: as --precision)"
    )
    step.add_argument("--transformer", action="store_true", help="also run a GPT of the same size")
    step.add_argument("--engine", action="store_true", help="also run the step through the DeepSpeed engine")
    step.add_argument(
        "--halves", action="store_true", help="also run unrelated jobs of a rank's part of the length at once"
    )
    step.add_argument("--parts", action="store_true", help="also say where the seconds of a step go (on a CPU)")
    step.add_argument("--live", action="store_true", help="record the peak of live tensors of long steps too")
    step.add_argument(
        "--limit-minutes", type=float, default=10.0, help="leave out a side that would take longer (default: 10)"
    )
    _finish(step, "step", rounds=3)


def _add_part(part: argparse.ArgumentParser, name: str) -> None:
    _add_shape(part)
    ranks = 1 if name == "convolution" else 2
    part.add_argument(
        "--sequence-parallel", type=int, default=ranks, help=f"ranks that share a sequence (default: {ranks})"
    )
    _finish(part, name, rounds=5)


def _add_shape(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--context-length", type=int, nargs="+", default=[32768], help="tokens of a sequence (default: 32768)"
    )
    command.add_argument("--width", type=int, default=128, help="channels (default: 128)")
    command.add_argument("--batch", type=int, default=1, help="sequences of a micro step (default: 1)")
    command.add_argument("--threads", type=int, default=1, help="threads of each process (default: 1)")
    command.add_argument(
        "--allocator",
        nargs="+",
        default=["tuned"],
        choices=["tuned", "default"],
        help="allocator of main memory: as `hyena-ds train` sets it, or as it comes (default: tuned)",
    )


def _finish(command: argparse.ArgumentParser, name: str, rounds: int) -> None:
    command.add_argument("--rounds", type=int, default=rounds, help=f"timed turns of each side (default: {rounds})")
    add_json(command)
    command.set_defaults(run=measurement(f"hyena_ds.bench.{name}"))


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", metavar="PATH", help="also write the rows to a JSON file")


def measurement(module: str) -> Callable[[argparse.Namespace], int]:
    """Runs `module.run(parsed)`, which returns rows and the machine, and saves them where --json says."""

    def run(parsed: argparse.Namespace) -> int:
        import importlib

        from hyena_ds.bench.report import check_writable, save
        from hyena_ds.errors import UserError

        if parsed.rounds < 1:
            raise UserError(f"--rounds: found {parsed.rounds}, wanted at least 1")
        check_writable(parsed.json)
        rows, machine = importlib.import_module(module).run(parsed)
        save(parsed.json, machine, rows)
        if parsed.json is not None:
            print(f"written: {parsed.json}")
        return 0 if any(row["status"] == "measured" for row in rows) else 1

    return run


def _plot(parsed: argparse.Namespace) -> int:
    from hyena_ds.bench.plots import plot

    plot(parsed.results, parsed.output)
    print(f"written: {parsed.output}")
    return 0
