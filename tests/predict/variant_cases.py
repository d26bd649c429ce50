"""A file of variants of every kind on the verbs' genome, and what the plain model says of them in float64."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.model.plain import plain_hidden
from tests.predict.verbs import CONFIG, complement, ids_of, save_genome

LEFT, RIGHT, STEP = 100, 20, 64
RULE = ("--left", LEFT, "--right", RIGHT)
HEADER = (
    "##fileformat=VCFv4.2\n##contig=<ID=A>\n"
    '##INFO=<ID=LABEL,Number=1,Type=String,Description="of a test">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\n"
)
KEYS = ("HDS_LLR", "HDS_LLR_FWD", "HDS_LLR_REV", "HDS_JSD", "HDS_COS", "HDS_L2")


def other(base: str, by: int = 1) -> str:
    """Another base."""
    return "ACGT"[("ACGT".index(base.upper()) + by) % 4]


def records(letters: dict[str, str]) -> list[list[str]]:
    """Lines of a VCF: single bases, indels, several bases, several ALTs, and what no model can be asked, on two contigs."""
    a, b = letters["chrA"].upper(), letters["chrB"].upper()

    def line(contig: str, position: int, length: int, *alternatives: str) -> list[str]:
        sequence = a if contig == "A" else b
        reference = sequence[position : position + length]
        name = f"{contig}{position}"
        return [contig, str(position + 1), name, reference, ",".join(alternatives), ".", "PASS", "LABEL=x", "GT", "0|1"]

    return [
        line("A", 1, 1, other(a[1])),
        line("A", 50, 1, other(a[50]), other(a[50], 2), other(a[50], 3)),
        line("A", 200, 1, a[200] + "ACGTT"),
        line("A", 200, 4, a[200]),
        line("A", 290, 1, other(a[290])),
        line("A", 500, 3, other(a[500]) + a[501] + other(a[502])),
        line("A", 501, 1, "*", other(a[501]), "<DEL>"),
        line("A", 600, 2, a[600] + "N"),
        line("A", 601, 1, f"{a[601]}]chrB:5]"),
        line("A", 602, 1, "."),
        line("A", len(a) - 3, 2, a[len(a) - 3]),
        line("B", 0, 1, other(b[0])),
        line("B", 350, 1, other(b[350])),
    ]


def save_vcf(directory: Path, name: str = "in.vcf") -> tuple[Path, Path, list[list[str]]]:
    """(FASTA, VCF, lines of its records); the VCF calls contigs by other names than the FASTA."""
    genome, letters = save_genome(directory)
    lines = records(letters)
    path = directory / name
    path.write_text(HEADER + "".join("\t".join(line) + "\n" for line in lines))
    return genome, path, lines


ALIASES = ("--alias", "A=chrA", "--alias", "B=chrB")


def plain_values(model: torch.nn.Module, contig: str, position: int, reference: str, alternative: str) -> list[float]:
    """The values of KEYS, by two whole windows a strand."""
    parameters = {name: parameter.double() for name, parameter in model.named_parameters()}
    changed = contig[:position] + alternative + contig[position + len(reference) :]
    strands = [_of_strand(parameters, *pair) for pair in ((contig, changed), (complement(contig), complement(changed)))]
    llr = [values[0] for values in strands]
    return [sum(llr) / 2, *llr, *(sum(values[at] for values in strands) / 2 for at in (1, 2, 3))]


def _of_strand(parameters: dict[str, Tensor], old: str, new: str) -> list[float]:
    pairs = enumerate(zip(old.upper(), new.upper(), strict=False))
    first = next((at for at, (a, b) in pairs if a != b), None)
    if first is None:
        return [0.0] * 4
    start = max(0, first - LEFT) // STEP * STEP
    end = min(first + RIGHT, len(old), len(new))
    sums, states, next_base = [], [], []
    for sequence in (new, old):
        ids = ids_of(sequence[start:end])
        hidden = plain_hidden(parameters, CONFIG, ids).detach()[0]
        logits = F.linear(hidden, parameters["backbone.embedding.weight"].detach())
        log_p = F.log_softmax(logits, -1)
        targets = ids[0, 1:]
        scored = (targets >= 7) & (targets <= 10)
        sums.append(float(log_p[:-1].gather(1, targets[:, None])[:, 0][scored].sum()))
        states.append(hidden[first - start])
        next_base.append(logits[first - start, 7:11].softmax(-1))
    middle = (next_base[0] + next_base[1]) / 2
    divergence = sum(float((p * (p / middle).log2()).sum()) for p in next_base) / 2
    cosine = 1 - float(F.cosine_similarity(states[0], states[1], dim=0))
    return [sums[0] - sums[1], divergence, cosine, float((states[0] - states[1]).norm())]
