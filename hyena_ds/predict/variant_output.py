"""Writes variants with the model's values: the input's own lines with more in INFO and FILTER, or a table of a row an ALT.

records and values, in the file's order --> .vcf  .vcf.gz (bgzip, and an index where it is sorted)  .bcf  .parquet  .tsv
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyena_ds.errors import UserError, need
from hyena_ds.files.whole import remove
from hyena_ds.genome.variant_file import COLUMNS, FILTER, FILTERS, INFO, Record, VariantFile
from hyena_ds.predict.tables import write_table

SUFFIXES = (".vcf.gz", ".vcf", ".bcf", ".parquet", ".tsv")
VALUES = {
    "HDS_LLR": "Log-likelihood (nats) of the window with ALT less that with REF, mean of both strands",
    "HDS_LLR_FWD": "HDS_LLR on the forward strand",
    "HDS_LLR_REV": "HDS_LLR on the reverse strand",
    "HDS_JSD": "Jensen-Shannon divergence (bits) of the next base after the first that differs, mean of both strands",
    "HDS_COS": "Cosine distance of the final hidden states at the first base that differs, mean of both strands",
    "HDS_L2": "Euclidean distance of the final hidden states at the first base that differs, mean of both strands",
}
"""The values of an ALT, in their order."""
EDGE = "HDS_EDGE"
_EDGE_IS = "An ALT had less context than asked for, at an end of its contig"


@dataclass(frozen=True)
class Annotated:
    """A record with what the model says of each ALT."""

    record: Record
    columns: list[str]
    values: list[tuple[float, ...] | None]
    """For each ALT those of VALUES, or None where there are none."""
    filters: list[str | None]
    """For each ALT why there are none."""
    edges: list[bool]


def write_annotated(path: Path, source: VariantFile, annotated: Iterable[Annotated], facts: str) -> None:
    """Write the whole of `path`; `facts` go into a VCF's header. Raises UserError where the input holds values already."""
    if path.name.endswith((".parquet", ".tsv")):
        write_table(path, _rows(source, annotated))
        return
    lines = _vcf_lines(source, annotated, facts)
    if path.name.endswith(".vcf"):
        with path.open("wb") as plain:
            plain.writelines(lines)
        return
    pysam = need("pysam", "predict")
    if path.name.endswith(".bcf"):
        _write_bcf(pysam, path, lines)
        return
    with pysam.BGZFile(str(path), "wb") as packed:
        for line in lines:
            packed.write(line)


def _write_bcf(pysam: Any, path: Path, lines: Iterable[bytes]) -> None:
    """Write a BCF, whose header has to declare whatever the records use, as a VCF's need not."""
    text, declared = path.with_name(f"{path.name}.vcf"), path.with_name(f"{path.name}.declared.vcf")
    with text.open("wb") as plain:
        plain.writelines(lines)
    pysam.set_verbosity(0)
    try:
        with pysam.VariantFile(str(text)) as read:
            for _ in read:  # the header gains what its records use
                pass
            header = str(read.header)
        with declared.open("wb") as new, text.open("rb") as old:
            new.write(header.encode("utf-8", "surrogateescape"))
            new.writelines(line for line in old if not line.startswith(b"#"))
        # pysam's own writer adds an END to symbolic ALTs, which no header declares.
        bcftools = importlib.import_module("pysam.bcftools")
        bcftools.view("--no-version", "-Ob", "-o", str(path), str(declared), catch_stdout=False)
    except (OSError, ValueError, pysam.SamtoolsError) as error:
        raise UserError(f"{path.name}: cannot be written as BCF ({error}); write a .vcf.gz") from None
    finally:
        remove(text)
        remove(declared)


def renew_index(path: Path, sorted_too: bool) -> None:
    """Write the tabix index of a .vcf.gz beside it where it is `sorted_too`; one of an earlier file goes."""
    remove(path.with_name(f"{path.name}.tbi"))
    if sorted_too:
        need("pysam", "predict").tabix_index(str(path), preset="vcf", force=True)


def is_sorted(records: Iterable[Record]) -> bool:
    """Whether every contig's records stand together, in the order of their positions."""
    done: set[str] = set()
    contig, position = None, -1
    for record in records:
        if record.contig != contig:
            if record.contig in done:
                return False
            done.add(record.contig)
            contig, position = record.contig, -1
        if record.position < position:
            return False
        position = record.position
    return True


def check_unannotated(source: VariantFile) -> None:
    """Raise UserError where the input has one of our values already."""
    ours = {*VALUES, EDGE}
    if source.kind == "TSV":
        found = ours & set(source.names)
    else:
        found = {name for name in ours for line in source.header if line.startswith(f"##INFO=<ID={name},")}
    if found:
        raise UserError(f"{source.path}: found values {min(found)} in it already; give the file that has none")


def _vcf_lines(source: VariantFile, annotated: Iterable[Annotated], facts: str) -> Iterator[bytes]:
    header = source.header[:-1] if source.kind != "TSV" else ["##fileformat=VCFv4.2"]
    last = source.header[-1] if source.kind != "TSV" else "#" + "\t".join(COLUMNS)
    ours = [f'##INFO=<ID={name},Number=A,Type=Float,Description="{text}">' for name, text in VALUES.items()]
    ours.append(f'##INFO=<ID={EDGE},Number=0,Type=Flag,Description="{_EDGE_IS}">')
    known = "\n".join(header)
    ours += [
        f'##FILTER=<ID={name},Description="{text}">'
        for name, text in FILTERS.items()
        if f"##FILTER=<ID={name}," not in known
    ]
    for line in (*header, *ours, f"##hyena_ds_variants={facts}", last):
        yield _bytes(line)
    for each in annotated:
        yield _bytes("\t".join(_vcf_columns(source, each)))


def _vcf_columns(source: VariantFile, each: Annotated) -> list[str]:
    record = each.record
    if source.kind == "TSV":
        alternatives = ",".join(record.alternatives)
        columns = [record.contig, str(record.position + 1), ".", record.reference, alternatives, ".", ".", "."]
    else:
        columns = list(each.columns)
    info = []
    if any(value is not None for value in each.values):
        for at, name in enumerate(VALUES):
            info.append(f"{name}={','.join('.' if value is None else _shown(value[at]) for value in each.values)}")
    if any(each.edges):
        info.append(EDGE)
    columns[INFO] = ";".join(([] if columns[INFO] in ("", ".") else [columns[INFO]]) + info) or "."
    reasons = list(dict.fromkeys(reason for reason in each.filters if reason is not None))
    if reasons:
        before = [name for name in columns[FILTER].split(";") if name not in (".", "PASS", "", *reasons)]
        columns[FILTER] = ";".join([*before, *reasons])
    return columns


def _rows(source: VariantFile, annotated: Iterable[Annotated]) -> Iterator[dict[str, Any]]:
    for number, each in enumerate(annotated):
        record = each.record
        before: dict[str, Any] = {"record": number}
        if source.kind == "TSV":
            before |= dict(zip(source.names, each.columns, strict=True))
        else:
            before |= {
                "chrom": record.contig,
                "pos": record.position + 1,
                "id": record.identifier,
                "ref": record.reference,
            }
        for alternative, values, reason, edge in zip(
            record.alternatives, each.values, each.filters, each.edges, strict=True
        ):
            own = dict(zip(VALUES, values or (math.nan,) * len(VALUES), strict=True))
            name = "alt" if source.kind != "TSV" else source.alternative_column
            yield {**before, name: alternative, **own, EDGE: edge, "HDS_FILTER": reason or ""}


def _shown(value: float) -> str:
    return f"{value:.7g}"


def _bytes(line: str) -> bytes:
    return f"{line}\n".encode("utf-8", "surrogateescape")
