"""The sub-commands of `hyena-ds bench`. Building the parser takes no torch.

step          an optimizer step: this trainer's, beside the published code's, a transformer's, the engine's
convolution   the long convolution, forward and backward, beside autograd's
exchange      activations through channel layout and back, in groups and all at once
loader        samples and tokens a second from shards
shards        what an index of thousands of shards costs a rank, without the shards
prep          megabases a second from FASTA to shards
checkpoint    how long a save keeps training waiting, in the background and not
precision     what rounding one thing to bfloat16 does to a trained model
predict       log-probabilities of a batch, beside the published code's forward pass
generate      seconds of a generated base, beside a forward pass for each
variants      a further ALT of a window, beside computing its whole sequence again
bytes         what a micro step gives a GPU to do, counted without one
warmup        loss and seconds of runs with context warmup beside runs without
plot          time and memory of a step against context length, from JSON files
"""

from __future__ import annotations

import argparse
from typing import Any, TypeAlias

from hyena_ds.config.policy import POLICIES

_PRECISIONS = ["float32", "bfloat16"]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_commands(parser: argparse.ArgumentParser) -> Commands:
    """Add the sub-commands to the parser of `hyena-ds bench`; each sets `run`, a function of the parsed arguments.

    Returns what other packages add their measurements to.
    """
    commands = parser.add_subparsers(dest="bench_command", required=True, metavar="COMMAND")
    step = commands.add_parser("step", help="an optimizer step, beside other code on request")
    _add_shape(step)
    add_option(step, "--layers", 2, "blocks")
    add_option(step, "--maximum-context", None, "tokens that the filter spans", shown="the context length", type=int)
    add_option(step, "--accumulation", 1, "micro steps of an optimizer step")
    add_option(step, "--sequence-parallel", [1], "ranks that share a sequence")
    add_option(step, "--policy", ["balanced"], "activation policies", choices=list(POLICIES))
    add_option(step, "--precision", ["float32"], "of projections and MLP", choices=_PRECISIONS)
    add_option(step, "--kernels", ["portable"], "of this trainer", choices=["portable", "native"])
    step.add_argument(
        "--reference", metavar="DIR", help="also run the published code: a clone of HazyResearch/hyena-dna"
    )
    theirs: dict[str, Any] = {"shown": "as --precision", "choices": _PRECISIONS}
    add_option(step, "--reference-precision", None, "of the published code", **theirs)
    step.add_argument(
        "--transformer",
        nargs="*",
        choices=["plain", "checkpointed"],
        help="also run a GPT of the same size; checkpointed: its blocks computed a second time in the backward pass, as in the "
        "paper's comparison (default of the option alone: plain)",
    )
    for name, text in (
        ("--engine", "also run the step through the DeepSpeed engine"),
        ("--halves", "also run unrelated jobs of a rank's part of the length at once"),
        ("--parts", "also say where the seconds of a step go (on a CPU)"),
        ("--live", "record the peak of live tensors of long steps too"),
    ):
        step.add_argument(name, action="store_true", help=text)
    add_option(step, "--limit-minutes", 10.0, "leave out a side that would take longer", shown="10")
    _finish(step, "step", rounds=3)
    for name, ranks, text in (
        ("convolution", 1, "the long convolution, forward and backward, beside autograd's"),
        ("exchange", 2, "activations through channel layout and back, between ranks"),
    ):
        part = commands.add_parser(name, help=text)
        _add_shape(part)
        add_option(part, "--sequence-parallel", ranks, "ranks that share a sequence")
        _finish(part, name, rounds=5)
    watch = commands.add_parser("watch", help="what looking for slow ranks and flipped bits costs beside a step")
    _add_shape(watch)
    add_option(watch, "--layers", 2, "blocks")
    add_option(watch, "--sequence-parallel", 2, "ranks that share a sequence")
    _finish(watch, "watch", rounds=15)
    loader = commands.add_parser("loader", help="samples and tokens a second from the shards of a config")
    add_option(loader, "--config", "configs/quickstart.yaml", "YAML of a run")
    add_option(loader, "--steps", 20, "optimizer steps to read in each stage")
    _finish(loader, "loader", rounds=3)
    text = "what an index of thousands of shards costs a rank: memory, first step, cache; without the shards"
    shards = commands.add_parser("shards", help=text)
    add_option(shards, "--genomes", 101, "sources, each of one genome")
    add_option(shards, "--shards", 31, "shards of a genome")
    add_option(shards, "--chunks", 96, "chunks of 2^20 bases of a shard")
    add_option(shards, "--ranks", 512, "ranks, each with a sequence of every step")
    add_option(shards, "--context-length", [1024, 32768, 1 << 20], "tokens of a sequence")
    add_option(shards, "--shuffle-shards", [16, 1], "shards of a genome that are shuffled together")
    add_measurement(shards, "hyena_ds.bench.many_shards")
    prep = commands.add_parser("prep", help="megabases a second from a random FASTA to shards")
    add_option(prep, "--megabases", 5.0, "length of the FASTA", shown="5")
    add_option(prep, "--workers", 1, "processes that prepare")
    _finish(prep, "prep", rounds=3)
    text = "how long a save keeps training waiting, in the background and not"
    checkpoint = commands.add_parser("checkpoint", help=text)
    add_option(checkpoint, "--width", [256, 1024], "channels")
    add_option(checkpoint, "--layers", [8, 16], "blocks")
    add_option(checkpoint, "--directory", ".", "where to write, for a while", shown="here")
    _finish(checkpoint, "checkpoint", rounds=3)
    precision = commands.add_parser("precision", help="what rounding one thing to bfloat16 does to a trained model")
    precision.add_argument("weights", help="weights.safetensors of a run")
    add_option(precision, "--config", "configs/quickstart.yaml", "its YAML")
    add_option(precision, "--windows", 8, "held-out windows")
    _finish(precision, "precision", rounds=1)
    predict = commands.add_parser("predict", help="log-probabilities of a batch, beside the published forward pass")
    add_option(predict, "--context-length", [1024, 32768], "tokens of a sequence")
    add_option(predict, "--batch", [16, 1], "sequences, for each context length")
    add_option(predict, "--width", 128, "channels")
    add_option(predict, "--layers", 2, "blocks")
    add_option(predict, "--sequence-parallel", 1, "ranks that share a sequence, of ours")
    add_option(predict, "--threads", 1, "threads of each process")
    predict.add_argument(
        "--reference", metavar="DIR", help="also run the published code: a clone of HazyResearch/hyena-dna"
    )
    _finish(predict, "predict", rounds=5)
    generate = commands.add_parser("generate", help="seconds of a generated base, beside a forward pass for each")
    add_option(generate, "--prompt-length", 16384, "bases of the prompt of the row beside recomputation")
    add_option(generate, "--tokens", 16384, "bases generated after it")
    add_option(generate, "--length", [4096, 65536], "bases of the rows that begin with a prompt of one")
    add_option(generate, "--width", 128, "channels")
    add_option(generate, "--layers", 2, "blocks")
    add_option(generate, "--threads", 1, "threads of the process")
    _finish(generate, "generate", rounds=3)
    variants = commands.add_parser("variants", help="a further ALT of a window, beside computing its sequence again")
    add_option(variants, "--left", 1_000_000, "bases before the variant")
    add_option(variants, "--right", 4096, "bases from it on")
    add_option(variants, "--width", 128, "channels")
    add_option(variants, "--layers", 2, "blocks")
    add_option(variants, "--alts", 3, "ALTs that go through the model together")
    add_option(variants, "--threads", 1, "threads")
    _finish(variants, "variants", rounds=3)
    text = "what a micro step gives a GPU to do: bytes, kernels, memory, exchanges; counted without one"
    count = commands.add_parser("bytes", help=text)
    count.add_argument("config", metavar="CONFIG", help="YAML of a run")
    add_option(count, "--context-length", None, "tokens of a sequence", shown="the longest of the config", type=int)
    add_option(count, "--policy", list(POLICIES), "activation policies", choices=list(POLICIES))
    add_option(count, "--precision", ["bfloat16"], "of projections and MLP", choices=_PRECISIONS)
    add_option(count, "--sequence-parallel", 1, "ranks that share a sequence")
    add_option(count, "--kernels", "portable", "whose kernels", choices=["portable", "triton", "fused"])
    add_measurement(count, "hyena_ds.bench.bytes")
    warmup = commands.add_parser("warmup", help="finished runs with context warmup beside runs without")
    warmup.add_argument("runs", nargs="+", metavar="RUN", help="run directories: the same seeds on both sides")
    add_measurement(warmup, "hyena_ds.bench.warmup")
    plot = commands.add_parser("plot", help="draw JSON files of `bench step`")
    plot.add_argument("results", nargs="+", metavar="RESULTS.json", help="files that --json wrote")
    plot.add_argument("--output", required=True, metavar="PNG", help="image to write")
    plot.set_defaults(run=_plot)
    return commands


def add_option(command: argparse.ArgumentParser, name: str, default: Any, text: str, **more: Any) -> None:
    """An option of its default's type, which may be a list; the help says the default, as `shown` does if it is given."""
    several = isinstance(default, list)
    shown = more.pop("shown", " ".join(map(str, default)) if several else default)
    if default is not None:
        more = {"default": default, "type": type(default[0] if several else default), **more}
    if several:
        more["nargs"] = "+"
    command.add_argument(name, help=f"{text} (default: {shown})", **more)


def _add_shape(command: argparse.ArgumentParser) -> None:
    add_option(command, "--context-length", [32768], "tokens of a sequence")
    add_option(command, "--width", 128, "channels")
    add_option(command, "--batch", 1, "sequences of a micro step")
    add_option(command, "--threads", 1, "threads of each process")
    text = "allocator of main memory: as `hyena-ds train` sets it, or as it comes"
    add_option(command, "--allocator", ["tuned"], text, choices=["tuned", "default"])


def _finish(command: argparse.ArgumentParser, name: str, rounds: int) -> None:
    add_option(command, "--rounds", rounds, "timed turns of each side")
    add_measurement(command, f"hyena_ds.bench.{name}")


def add_measurement(command: argparse.ArgumentParser, module: str) -> None:
    """Let the command run `module.measure(parsed)`, which returns rows and the machine, and save them where --json says."""
    command.add_argument("--json", metavar="PATH", help="also write the rows to a JSON file")
    command.set_defaults(run=_measure, measurement=module)


def _measure(parsed: argparse.Namespace) -> int:
    import importlib

    from hyena_ds.bench.report import check_writable, save
    from hyena_ds.errors import UserError

    if getattr(parsed, "rounds", 1) < 1:
        raise UserError(f"--rounds: found {parsed.rounds}, wanted at least 1")
    check_writable(parsed.json)
    rows, machine = importlib.import_module(parsed.measurement).measure(parsed)
    save(parsed.json, machine, rows)
    if parsed.json is not None:
        print(f"written: {parsed.json}")
    return 0 if any(row["status"] == "measured" for row in rows) else 1


def _plot(parsed: argparse.Namespace) -> int:
    from hyena_ds.bench.plots import plot

    plot(parsed.results, parsed.output)
    print(f"written: {parsed.output}")
    return 0
