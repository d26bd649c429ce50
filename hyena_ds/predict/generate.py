"""`hyena-ds generate MODEL`: bases after a prompt, one FASTA record for each. Building the parser takes no torch.

options, prompts --checked--> this process, or ranks of this machine --generation.py--> FASTA and JSON, written whole
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from hyena_ds.config.limits import MOST_CONTEXT, MOST_LOCAL_RANKS, MOST_SEQUENCES, check_count, whole_number
from hyena_ds.errors import LocalError, UserError
from hyena_ds.files.whole import write_whole
from hyena_ds.predict.prompts import Prompt, fasta_prompts, typed_prompt
from hyena_ds.predict.sampling import BASES, Sampling
from hyena_ds.runtime import local_ranks

_LINE = 60
"""Bases of a line of FASTA."""
_LONGEST_WAIT = timedelta(days=7)
"""For ranks that have nothing left to decode."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set up the parser of `hyena-ds generate`; `run` is a function of the parsed arguments."""
    parser.add_argument("model", metavar="MODEL", help="a run, a checkpoint or a weights file")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="ACGT", help="bases to go on from; N is allowed")
    prompt.add_argument("--prompt-fasta", metavar="FASTA", help="a file of prompts, one a record, plain or packed")
    parser.add_argument("--tokens", type=whole_number, required=True, metavar="N", help="bases after each prompt")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="divides the logits; 0 takes the likeliest base (default: 1)"
    )
    text = "draw from so many of the likeliest bases (default: all four)"
    parser.add_argument("--top-k", type=whole_number, default=len(BASES), help=text)
    text = "draw from the likeliest bases that together have this probability (default: 1)"
    parser.add_argument("--top-p", type=float, default=1.0, help=text)
    text = "which draws are made; the same seed, the same bases (default: 0)"
    parser.add_argument("--seed", type=whole_number, default=0, help=text)
    parser.add_argument("--output", metavar="OUT.fa", help="FASTA to write (default: standard output)")
    parser.add_argument("--json", metavar="PATH", help="also write settings, lengths and seconds to a JSON file")
    text = "prompts that a rank decodes together at most; changes no base (default: 8)"
    parser.add_argument("--batch", type=whole_number, default=8, help=text)
    text = "of projections and MLP (default: float32)"
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help=text)
    parser.add_argument(
        "--ranks", type=whole_number, default=1, help="processes of this machine that share the prompts (default: 1)"
    )
    text = "of them, those that share a prompt's forward pass (default: 1)"
    parser.add_argument("--sequence-parallel", type=whole_number, default=1, metavar="P", help=text)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Check everything that can be checked without the model, then generate, here or on ranks; the exit code."""
    sampling = Sampling(parsed.temperature, parsed.top_k, parsed.top_p, parsed.seed)
    sampling.check()
    for option, value, most in (
        ("--tokens", parsed.tokens, MOST_CONTEXT),
        ("--batch", parsed.batch, MOST_SEQUENCES),
        ("--ranks", parsed.ranks, MOST_LOCAL_RANKS),
        ("--sequence-parallel", parsed.sequence_parallel, parsed.ranks),
    ):
        check_count(option, value, most)
    if parsed.ranks % parsed.sequence_parallel:
        raise UserError(
            f"--sequence-parallel: found {parsed.sequence_parallel}, wanted a divisor of --ranks {parsed.ranks}"
        )
    for option, path in (("--output", parsed.output), ("--json", parsed.json)):
        if path is not None and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
            raise UserError(f"{option} {path}: cannot be written there; name a file in a directory that exists")
    prompts = typed_prompt(parsed.prompt) if parsed.prompt is not None else fasta_prompts(Path(parsed.prompt_fasta))
    if parsed.ranks > 1 and not local_ranks.under_launcher():
        return _on_ranks(parsed)
    _generate(parsed, sampling, prompts)
    return 0


def _on_ranks(parsed: argparse.Namespace) -> int:
    """Run the same command as ranks of this machine; what they would print comes through a file."""
    options = {
        name: value for name, value in vars(parsed).items() if name not in ("model", "run", "launch", "local_rank")
    }
    with TemporaryDirectory(prefix="hyena-generate-") as directory:
        output = parsed.output or str(Path(directory) / "generated.fa")
        given = {**options, "output": output}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
        code = local_ranks.start_local_ranks(["generate", *flags, "--", parsed.model], parsed.ranks)
        if code == 0 and parsed.output is None:
            print(Path(output).read_text(encoding="utf-8"), end="")
    return code


def _generate(parsed: argparse.Namespace, sampling: Sampling, prompts: Sequence[Prompt]) -> None:
    import torch

    from hyena_ds.checkpoints.weights import find_weights, load_model
    from hyena_ds.data.shards import sha256_of
    from hyena_ds.model.backbone import HyenaDNA
    from hyena_ds.parallel.agreement import agreed, from_every_rank, from_rank_zero
    from hyena_ds.parallel.devices import broken_collective, compute_alone, start_compute
    from hyena_ds.parallel.layout import Exchange
    from hyena_ds.parallel.topology import Topology, create_groups
    from hyena_ds.predict.generation import generate
    from hyena_ds.predict.predictor import Predictor
    from hyena_ds.predict.prefill import check_fits

    together = local_ranks.under_launcher()
    compute = start_compute(_LONGEST_WAIT) if together else compute_alone()

    def load() -> tuple[str, HyenaDNA]:
        weights = find_weights(parsed.model)
        return sha256_of(weights), load_model(weights)

    digest, model = agreed(load) if together else load()
    grid = Topology(compute.ranks // parsed.sequence_parallel, parsed.sequence_parallel)
    exchange = Exchange(
        create_groups([grid.sequence_parallel], compute.rank, compute.ranks).get(grid.sequence_parallel)
    )
    predictor = Predictor(model.to(compute.device), exchange, getattr(torch, parsed.precision))
    maximum = predictor.model.config.maximum_context
    for prompt in prompts:  # all of them, so that all ranks raise
        check_fits(maximum, len(prompt.token_ids), parsed.tokens, f"prompt '{prompt.name}': ")
    own = prompts[grid.row(compute.rank) :: grid.data_parallel]
    began = time.perf_counter()
    share = parsed.tokens * len(own[grid.index(compute.rank) :: grid.sequence_parallel])
    hidden = None if compute.rank == 0 else True
    try:
        with tqdm(total=share, unit="base", unit_scale=True, desc="generate", disable=hidden) as bar:
            drawn = generate(predictor, own, parsed.tokens, sampling, parsed.batch, bar.update)
            found = {prompt.number: bases for prompt, bases in drawn}
        if together:
            found = {number: bases for of_rank in from_every_rank(found) for number, bases in of_rank.items()}
    except Exception as error:
        if not broken_collective(error):
            raise
        raise LocalError(f"rank {compute.rank}: another rank has ended, which says why; correct that") from None
    seconds = time.perf_counter() - began

    def write() -> None:
        settings = {**vars(sampling), "precision": parsed.precision}
        records = [(prompt, found[prompt.number]) for prompt in prompts]
        text = "".join(_record(prompt, bases, digest, settings) for prompt, bases in records)
        if parsed.json is not None:
            report = {
                "model": {"sha256": digest, "maximum_context": maximum},
                "settings": {**settings, "tokens": parsed.tokens, "batch": parsed.batch},
                "ranks": compute.ranks,
                "sequence_parallel": grid.sequence_parallel,
                "seconds": round(seconds, 3),
                "records": [
                    {"name": prompt.name, "prompt_bases": len(prompt.token_ids), "generated_bases": len(bases)}
                    for prompt, bases in records
                ],
            }
            write_whole(Path(parsed.json), json.dumps(report, indent=1) + "\n")
        if parsed.output is not None:
            write_whole(Path(parsed.output), text)
        else:
            sys.stdout.write(text)

    from_rank_zero(write) if together else write()


def _record(prompt: Prompt, bases: str, digest: str, settings: dict[str, object]) -> str:
    """A FASTA record of what was generated; its header says from what, by which model, and how."""
    facts = {"prompt_bases": len(prompt.token_ids), "generated_bases": len(bases), "model": f"sha256:{digest[:16]}"}
    words = " ".join(f"{name}={value}" for name, value in {**facts, **settings, "record": prompt.number}.items())
    lines = "\n".join(bases[first : first + _LINE] for first in range(0, len(bases), _LINE))
    return f">{prompt.name} {words}\n{lines}\n"
