"""Whether weights give the numbers that others got from the published ones.

    recorded outputs --what is at hand: a sequence, a genome--> forward passes --> rows (wanted, found), and what was not checked

B batch, L context length, V vocabulary, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_ds.errors import UserError
from hyena_ds.genome.fasta import Genome, open_genome
from hyena_ds.genome.tokenizer import LETTERS, encode
from hyena_ds.predict.predictor import Predictor
from hyena_ds.weights.outputs import Recorded, Region

TOLERANCE = 1e-3
"""Largest difference of a number that is taken for rounding: other versions of torch, other FFT lengths."""
MOST_FASTA = 1 << 40
_BASES = [LETTERS[letter] for letter in "ACGT"]


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    difference: float
    """Largest absolute difference of its numbers."""
    numbers: int

    @property
    def agrees(self) -> bool:
        """Whether the difference is rounding."""
        return self.difference <= TOLERANCE


@dataclass(frozen=True)
class Verdict:
    """What was compared, and what could not be."""

    rows: tuple[Row, ...]
    left: tuple[str, ...]
    """A sentence for each number that could not be checked."""

    @property
    def agrees(self) -> bool:
        """Whether all that was compared agrees."""
        return all(row.agrees for row in self.rows)

    @property
    def largest(self) -> float:
        """The largest difference."""
        return max(row.difference for row in self.rows)


def check_outputs(predictor: Predictor, recorded: Recorded, genome: Path | None) -> Verdict:
    """Compare with recorded outputs; regions need a FASTA of hg38, or one whose records are called as the regions.

    Raises UserError where the outputs are of another model's shape, the FASTA cannot be read, or nothing can be compared.
    """
    config = predictor.model.config
    if not recorded.fits(config):
        has = ", ".join(f"{name} {getattr(config, name)}" for name in recorded.shape)
        wants = ", ".join(f"{name} {size}" for name, size in recorded.shape.items())
        raise UserError(f"{recorded.path}: the numbers are of a model with {wants}, the weights have {has}")
    rows, left = [], []
    if recorded.hidden_D:
        rows.append(_hidden_row(predictor, recorded))
    if recorded.regions and genome is None:
        left = [f"{region.name}: needs hg38; give --genome FASTA" for region in recorded.regions]
    for region, bases in _regions(genome, recorded.regions):
        if isinstance(bases, str):
            left.append(f"{region.name}: {bases}")
        else:
            rows.append(_loss_row(predictor, region, bases))
    if not rows:
        raise UserError(f"{recorded.path}: none of its numbers can be checked ({left[0]})")
    return Verdict(tuple(rows), tuple(left))


def _hidden_row(predictor: Predictor, recorded: Recorded) -> Row:
    ids_BL = _ids(recorded.sequence.encode("ascii", "replace"))
    mean_D = predictor.hidden(ids_BL)[0].double().mean(0)
    if mean_D.numel() != len(recorded.hidden_D):
        raise UserError(
            f"{recorded.path}: values: found {len(recorded.hidden_D)} numbers, wanted {mean_D.numel()}, the model's width"
        )
    difference = _largest(mean_D, torch.tensor(recorded.hidden_D, dtype=torch.float64))
    return Row(f"mean hidden state of {recorded.sequence[:40]}", difference, mean_D.numel())


def _loss_row(predictor: Predictor, region: Region, bases: bytes) -> Row:
    """Losses of bases 2 to the last, given those before them."""
    ids_BL = _ids(bases)
    logits_LV, targets_L = predictor.logits(ids_BL)[0, :-1].double(), ids_BL[0, 1:]
    over_all = F.cross_entropy(logits_LV, targets_L)
    over_bases = F.cross_entropy(logits_LV[:, _BASES], targets_L - _BASES[0])
    found = torch.stack((over_all, over_bases))
    return Row(f"loss of {region.name}", _largest(found, torch.tensor(region.losses, dtype=torch.float64)), 2)


def _largest(found: Tensor, wanted: Tensor) -> float:
    difference = float((found - wanted).abs().max())
    return math.inf if math.isnan(difference) else difference


def _ids(bases: bytes) -> Tensor:
    return torch.from_numpy(encode(bases).copy()).long().unsqueeze(0)


def _regions(genome: Path | None, regions: Sequence[Region]) -> Iterator[tuple[Region, bytes | str]]:
    """Each region with its bases in upper case, or why it has none."""
    if genome is None or not regions:
        return
    with TemporaryDirectory(prefix="hyena-ds-check-") as work:
        opened = open_genome(genome, Path(work), MOST_FASTA).genome
        with closing(opened):
            lengths = opened.lengths()
            for region in regions:
                yield region, _bases(opened, lengths, region, genome)


def _bases(opened: Genome, lengths: dict[str, int], region: Region, genome: Path) -> bytes | str:
    length = region.end - region.start
    if lengths.get(region.name) == length:
        contig, start = region.name, 0
    elif lengths.get(region.contig, 0) >= region.end:
        contig, start = region.contig, region.start
    else:
        known = f"{lengths[region.contig]:,} bases" if region.contig in lengths else "no such record"
        return f"{genome} has {known} of {region.contig}"
    bases = opened.read(contig, start, start + length).tobytes().upper()
    if set(bases) - set(b"ACGT"):
        return f"{genome} has letters there that are no bases; is it hg38?"
    return bases
