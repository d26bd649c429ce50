"""Prompts as they are typed or stand in a FASTA, checked before anything is computed. Takes no torch.

text or FASTA --letters A C G T N, either case--> Prompt(name, token ids)
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyena_ds.errors import UserError
from hyena_ds.genome.fasta import open_genome
from hyena_ds.genome.letters import IS_PLAIN, letter_name, token_table

MOST_BYTES = 1 << 32
"""A FASTA of prompts may have so many; beyond it no machine could go on from all of them."""
_TABLE = token_table(fold_case=True, ambiguous_to_n=False, other_to_n=False)


class Prompt(NamedTuple):
    """A sequence to go on from."""

    number: int
    """Its place among all, from 0."""
    name: str
    token_ids: NDArray[np.uint8]


def typed_prompt(text: str) -> list[Prompt]:
    """The prompt of a command line. Raises UserError for nothing, and for letters that are no bases."""
    letters = np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8)
    return [Prompt(0, "prompt", _encoded("--prompt", letters))]


def fasta_prompts(path: Path) -> list[Prompt]:
    """One of each record, in the order of the file, plain or packed. Raises UserError where one cannot be a prompt."""
    with TemporaryDirectory(prefix="hyena-prompts-") as work:
        opened = open_genome(path, Path(work), MOST_BYTES)
        prompts = []
        for number, record in enumerate(opened.records):
            letters = opened.genome.read(record.name, 0, record.bases)
            prompts.append(Prompt(number, record.name, _encoded(f"{path}: record '{record.name}'", letters)))
        opened.genome.close()
    return prompts


def _encoded(where: str, letters: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not len(letters):
        raise UserError(f"{where}: found no bases, wanted a prompt of one base or more")
    strange = np.flatnonzero(~IS_PLAIN[letters])
    if len(strange):
        first = int(strange[0])
        raise UserError(
            f"{where}: found {letter_name(int(letters[first]))} at position {first + 1:,}, wanted the letters A, C, G, T and "
            "N; write N for what is not known"
        )
    return _TABLE[letters]
