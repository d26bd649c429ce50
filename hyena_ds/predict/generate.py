"""`hyena-ds generate MODEL`: bases after a prompt, one FASTA record for each. Building the parser takes no torch.

prompts --this rank's share, generation.py--> bases of all ranks --> FASTA, written whole; or standard output
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hyena_ds.config.limits import MOST_CONTEXT, check_count, whole_number
from hyena_ds.errors import say
from hyena_ds.files.whole import write_whole
from hyena_ds.predict.options import add_options, options_of
from hyena_ds.predict.parts import is_whole
from hyena_ds.predict.prompts import Prompt, fasta_prompts, typed_prompt
from hyena_ds.predict.sampling import BASES, Sampling

if TYPE_CHECKING:
    from hyena_ds.config.model import ModelConfig
    from hyena_ds.predict.session import Pass, Session

_SUFFIXES = (".fa", ".fasta", ".fna")
_BATCH = 8
_LINE = 60
"""Bases of a line of FASTA."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set up the parser of `hyena-ds generate`; `run` is a function of the parsed arguments."""
    batch = f"prompts that a rank decodes together at most; changes no base (default: {_BATCH})"
    add_options(
        parser,
        f"FASTA to write: {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} (default: standard output)",
        False,
        batch,
    )
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="ACGT", help="bases to go on from; N is allowed")
    prompt.add_argument("--prompt-fasta", metavar="FASTA", help="prompts, one a record, plain or gzip")
    parser.add_argument("--tokens", type=whole_number, required=True, metavar="N", help="bases after each prompt")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="divides the logits; 0 takes the likeliest base (default: 1)",
    )
    text = "draw from so many of the likeliest bases (default: all four)"
    parser.add_argument("--top-k", type=whole_number, default=len(BASES), metavar="K", help=text)
    text = "draw from the likeliest bases that together have this probability (default: 1)"
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help=text)
    text = "which draws are made; the same seed, the same bases (default: 0)"
    parser.add_argument("--seed", type=whole_number, default=0, metavar="S", help=text)
    parser.set_defaults(run=_generate)


def _generate(parsed: argparse.Namespace) -> int:
    if parsed.output is not None:
        return _to_file(parsed)
    with TemporaryDirectory(prefix="hyena-generate-") as directory:
        parsed.output = str(Path(directory) / "generated.fa")
        parsed.typed = [parsed.typed[0], f"--output={parsed.output}", *parsed.typed[1:]]
        code = _to_file(parsed)
        if code == 0:
            sys.stdout.write(Path(parsed.output).read_text(encoding="utf-8"))
    return code


def _to_file(parsed: argparse.Namespace) -> int:
    sampling = Sampling(parsed.temperature, parsed.top_k, parsed.top_p, parsed.seed)
    sampling.check()
    check_count("--tokens", parsed.tokens, MOST_CONTEXT)
    options = options_of(parsed, _SUFFIXES)
    prompts = typed_prompt(parsed.prompt) if parsed.prompt is not None else fasta_prompts(Path(parsed.prompt_fasta))
    if not options.overwrite and is_whole(options.output, options.resume):
        say(f"{options.output} is complete already")
        return 0
    from hyena_ds.predict.session import start

    return start(parsed, options, lambda session: _Generation(session, prompts, parsed.tokens, sampling).run())


class _Generation:
    """One generation: after which prompts, how bases are drawn, and what comes of it."""

    def __init__(self, session: Session, prompts: Sequence[Prompt], tokens: int, sampling: Sampling):
        from hyena_ds.predict.prefill import check_fits

        self._session, self._options = session, session.options
        self._prompts, self._tokens, self._sampling = prompts, tokens, sampling
        self._batch = self._options.batch or _BATCH
        self._predictor = session.load()
        self._context = session.context(self._predictor)
        limit = "the model's maximum_context" if self._options.context is None else "--context"
        for prompt in prompts:  # all of them, so that all ranks raise
            check_fits(self._context, len(prompt.token_ids), tokens, f"prompt '{prompt.name}': ", limit)

    def run(self) -> bool:
        """Whether all is done. Collective."""
        session = self._session
        session.plan(self._predictor.model.config, self._largest_pass(self._predictor.model.config))
        found = self._drawn(session.share(self._prompts))
        session.summary(session.on_rank_zero(lambda: self._finish(found)))
        return True

    def _largest_pass(self, config: ModelConfig) -> Pass:
        """That over the longest prompt, beside the states of all that are decoded together, and the decoder's filters."""
        from hyena_ds.cost.memory import held_filters
        from hyena_ds.predict.generation import prompts_at_once, state_bytes
        from hyena_ds.predict.session import Pass

        longest, ranks = max(len(prompt.token_ids) for prompt in self._prompts), self._options.sequence_parallel
        together = min(prompts_at_once(config, self._tokens, self._batch), len(self._prompts))
        # A prompt's state, and a line of the decoder made of it; the filters, a copy while they are made, and spectra.
        held = (2 * together + 3) * state_bytes(config, self._tokens)
        more = held_filters(config, longest + self._tokens, ranks) - held_filters(config, longest, ranks)
        return Pass(1, longest, held=held + more)

    def _drawn(self, own: Sequence[Prompt]) -> dict[int, str]:
        """Bases of all prompts by number, on every rank; of which `own` are this group's. Collective."""
        from hyena_ds.parallel.agreement import from_every_rank
        from hyena_ds.predict.generation import generate

        exchange, hidden = self._predictor.exchange, None if self._session.rank == 0 else True
        share = self._tokens * len(own[exchange.index :: exchange.size])
        with tqdm(total=share, unit="base", unit_scale=True, desc="generate", disable=hidden) as bar:
            drawn = generate(self._predictor, own, self._tokens, self._sampling, self._batch, bar.update)
            found = {prompt.number: bases for prompt, bases in drawn}
        if self._session.ranks == 1:
            return found
        return {number: bases for of_rank in from_every_rank(found) for number, bases in of_rank.items()}

    def _settings(self) -> dict[str, Any]:
        return {
            **self._session.settings("generate"),
            **vars(self._sampling),
            "tokens": self._tokens,
            "context": self._context,
            "batch": self._batch,
        }

    def _finish(self, found: dict[int, str]) -> dict[str, Any]:
        """Write the output; what is to be said of it."""
        settings = self._settings()
        records = [(prompt, found[prompt.number]) for prompt in self._prompts]
        shown = {**vars(self._sampling), "precision": settings["precision"]}
        if settings["shift"] is not None:
            shown["shift"] = settings["shift"]
        text = "".join(_record(prompt, bases, settings["model"], shown) for prompt, bases in records)
        write_whole(self._options.output, text)
        lengths = [
            {"name": prompt.name, "prompt_bases": len(prompt.token_ids), "generated_bases": len(bases)}
            for prompt, bases in records
        ]
        return {"records": lengths, **settings}


def _record(prompt: Prompt, bases: str, digest: str, settings: dict[str, object]) -> str:
    """A FASTA record of what was generated; its header says from what, by which model, and how."""
    facts = {"prompt_bases": len(prompt.token_ids), "generated_bases": len(bases), "model": f"sha256:{digest[:16]}"}
    words = " ".join(f"{name}={value}" for name, value in {**facts, **settings, "record": prompt.number}.items())
    lines = "\n".join(bases[first : first + _LINE] for first in range(0, len(bases), _LINE))
    return f">{prompt.name} {words}\n{lines}\n"
