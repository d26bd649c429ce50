"""The key names under which others keep a HyenaDNA, brought to the published ones.

    keys of a file --prefix, `.layer`, MultiMolecule's names--> backbone.layers.3.mixer.in_proj.weight ... --> ours

A layout is known by the key of its embedding. Nothing is read here but names and shapes; numbers are read by `Found.tensor`.
Sources: HazyResearch/hyena-dna (huggingface.py, src/tasks), the -hf repositories of LongSafari, DLS5-Omics/multimolecule
(models/hyenadna, tokenisers/dna), of which names and the order of the vocabulary are facts used here, and no code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.genome.tokenizer import BOS, CLS, MASK, PAD, RESERVED, SEP, UNKNOWN, VOCABULARY, A, C, G, N, T

TASK_HEAD = "head."
"""Beginning of the keys of a fine-tuned model's head, beside the published ones."""
EMBEDDING, HEAD = "backbone.embeddings.word_embeddings.weight", "lm_head.weight"


class Stored(Protocol):
    """A tensor that is still in its file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> str:
        """Its numbers' type, as safetensors calls them."""

    def load(self) -> Tensor:
        """Read it."""


@dataclass(frozen=True)
class Layout:
    """Where a kind of file keeps a model's tensors."""

    name: str
    prefix: str
    """Before every key of the model."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Beginnings of keys behind the prefix, and the published ones."""
    rows: tuple[int, ...] | None = None
    """For each row of our vocabulary, the row that has it; None: the same order."""
    strangers: bool = False
    """Whether keys beside the model's are usual: optimizer metrics of Lightning, heads of a fine-tuned model."""

    @property
    def embedding(self) -> str:
        """The key that a file of this layout has."""
        begin = next((theirs for theirs, ours in self.renamed if EMBEDDING.startswith(ours)), "backbone.embeddings.")
        return f"{self.prefix}{begin}word_embeddings.weight"

    def published(self, key: str) -> str | None:
        """The published name of a key of a file, or None for one that is not the model's."""
        if key in (HEAD, self.prefix + HEAD):
            return HEAD
        if not key.startswith(self.prefix):
            return None
        key = _WRAPPED.sub(r"\1", key.removeprefix(self.prefix))
        if not self.renamed:
            return key if key.startswith("backbone.") else None
        found = (ours + key.removeprefix(theirs) for theirs, ours in self.renamed if key.startswith(theirs))
        return next(found, None)


_WRAPPED = re.compile(r"(\.(?:mixer|mlp)\.)layer\.")
"""Activation checkpointing wraps a module in one that calls it `layer`."""
_MULTIMOLECULE = (
    ("embeddings.", "backbone.embeddings."),
    ("layers.", "backbone.layers."),
    ("final_layer_norm.", "backbone.ln_f."),
)
_PAD, _CLS, _EOS, _UNK, _MASK, _NULL, _A, _C, _G, _T, _N = range(11)
"""MultiMolecule's vocabulary: six specials, then the letters of its streamline alphabet."""
_TO_MULTIMOLECULE = {
    **{CLS: _CLS, SEP: _EOS, BOS: _NULL, MASK: _MASK, PAD: _PAD, RESERVED: _NULL, UNKNOWN: _UNK},
    **{A: _A, C: _C, G: _G, T: _T, N: _N},
}
_ROWS = tuple(_TO_MULTIMOLECULE.get(row, row) for row in range(VOCABULARY))

PUBLISHED = Layout("published key names", "")
LAYOUTS = (
    PUBLISHED,
    Layout("Lightning checkpoint of the published code", "model.", strangers=True),
    Layout("Hugging Face (-hf)", "hyena.", strangers=True),
    Layout("MultiMolecule", "model.", _MULTIMOLECULE, _ROWS, strangers=True),
    Layout("MultiMolecule, backbone only", "", _MULTIMOLECULE, _ROWS, strangers=True),
)


@dataclass(frozen=True)
class Found:
    """A file's tensors under published names."""

    path: Path
    layout: Layout
    tensors: dict[str, Stored]
    keys: dict[str, str]
    """The file's own key of each."""
    left_out: tuple[str, ...]
    """Keys that are not the model's."""

    def tensor(self, name: str) -> Tensor:
        """A tensor by its published name, float32, the vocabulary in our order."""
        tensor = self.tensors[name].load().float()
        if self.layout.rows is not None and name in (EMBEDDING, HEAD):
            return tensor[torch.tensor(self.layout.rows)]
        return tensor

    def called(self, name: str) -> str:
        """The file's own key of a published name, for a sentence; where it is missing, what it would be called."""
        if name in self.keys:
            return in_one_line(self.keys[name], MOST_QUOTED)
        for theirs, ours in self.layout.renamed:
            if name.startswith(ours):
                return self.layout.prefix + theirs + name.removeprefix(ours)
        return self.layout.prefix + name


def find_layout(path: Path, tensors: Mapping[str, Stored]) -> Found:
    """The layout of a file, and its tensors under published names.

    Raises UserError where it is none that is known, has one tensor twice, or a key that no HyenaDNA has.
    """
    layout = next((layout for layout in LAYOUTS if layout.embedding in tensors), None)
    if layout is None:
        first = in_one_line(min(tensors, default=""), MOST_QUOTED)
        what = f"keys such as '{first}'" if tensors else "no tensors"
        wanted = ", ".join(f"'{layout.embedding}'" for layout in LAYOUTS)
        raise UserError(f"{path}: found {what}, wanted a HyenaDNA, which has one of {wanted}; name another file")
    found: dict[str, Stored] = {}
    keys: dict[str, str] = {}
    left_out = []
    for key in sorted(tensors):
        name = layout.published(key)
        if name is None:
            left_out.append(key)
        elif name in found:
            one, other = (in_one_line(each, MOST_QUOTED) for each in (keys[name], key))
            raise UserError(f"{path}: found '{one}' and '{other}', which are one tensor; keep one of them")
        else:
            found[name], keys[name] = tensors[key], key
    unknown = [key for key in left_out if not key.startswith(TASK_HEAD)]
    if unknown and not layout.strangers:
        key = in_one_line(unknown[0], MOST_QUOTED)
        raise UserError(f"{path}: found the unknown key '{key}'; wanted the published HyenaDNA key names")
    return Found(path, layout, found, keys, tuple(left_out))
