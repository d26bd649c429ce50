"""Reads labelled sequences, whatever form they come in.

    CSV, TSV, Parquet: sequence,label ---------------------------+
    directory: one CSV or FASTA per class -----------------------+
    FASTA: headers that end in |LABEL ---------------------------+--> Rows --targets of the kind--> LabelledSet
    BED (name = label), VCF (INFO) or intervals, and a genome ---+

Coordinates are 0-based and half-open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.genome.letters import AMBIGUOUS, PLAIN, letter_name
from hyena_ds.labelled import targets as parse
from hyena_ds.labelled.forms import FASTA, TABLES, fasta_records, header_of
from hyena_ds.labelled.genome import GenomeReader, variant_windows
from hyena_ds.labelled.sets import Interval, LabelledSet, Targets, check_kind
from hyena_ds.labelled.tables import MISSING, Table, bare_name, read_table

SEQUENCE, LABEL, GROUP = "sequence", "label", "group"
"""Columns."""
WINDOW = 1024
"""Bases round a variant of a VCF."""
_SHORT = "seq"
"""GenomicBenchmarks' name of the column of sequences."""
_CONTIGS = ("contig", "chrom", "chr", "chromosome", "region")
_STRANDS = {"1": "+", "-1": "-", "": "."}
_PLAIN, _AMBIGUOUS = PLAIN.encode(), AMBIGUOUS.encode()
_TO_N = bytes.maketrans(_AMBIGUOUS, b"N" * len(_AMBIGUOUS))


@dataclass
class Rows:
    """Sequences as they were found, and the text of their labels."""

    sequences: list[str] = field(default_factory=list)
    labels: dict[str, list[str]] = field(default_factory=dict)
    """One column, or one for each output, by name."""
    names: list[str] = field(default_factory=list)
    places: list[Interval | None] = field(default_factory=list)
    groups: list[str] | None = None
    ambiguous: int = 0

    def add(self, text: str, name: str, place: Interval | None) -> None:
        """Take a sequence in. Raises UserError for one that is empty, or has other letters than bases."""
        letters = text.strip().upper().encode("ascii", "replace")
        if not letters:
            raise UserError(f"{name}: found an empty sequence, wanted bases; leave the row out")
        others = letters.translate(None, _PLAIN)
        if others:
            strange = others.translate(None, _AMBIGUOUS)
            if strange:
                cure = "; write U as T" if strange[:1] == b"U" else ""
                raise UserError(
                    f"{name}: found '{letter_name(strange[0])}' in the sequence, wanted A C G T N or IUPAC codes{cure}; "
                    "correct the row, or leave it out"
                )
            self.ambiguous += len(others)
            letters = letters.translate(_TO_N)
        self.sequences.append(letters.decode())
        self.names.append(name)
        self.places.append(place)

    def extend(self, other: Rows) -> None:
        """Take the rows of another file in, of the same columns."""
        for name, values in other.labels.items():
            self.labels.setdefault(name, []).extend(values)
        self.sequences += other.sequences
        self.names += other.names
        self.places += other.places
        self.ambiguous += other.ambiguous


def read_labelled(
    path: str | Path,
    kind: str,
    *,
    genome: str | Path | None = None,
    sequence: str = SEQUENCE,
    label: str = LABEL,
    classes: tuple[str, ...] | None = None,
    window: int = WINDOW,
) -> LabelledSet:
    """Sequences with targets from a file or a directory.

    `kind` is one of KINDS; `genome` a FASTA that intervals are cut from; `sequence` and `label` name columns, or the key of a
    VCF's INFO. `classes` are those of the train set, in their order: give them where a valid or test set is read. `window` bases
    are taken round a variant of a VCF. Raises UserError, naming file and line, for whatever is not of this form.
    """
    check_kind(kind)
    source = Path(path)
    with GenomeReader(None if genome is None else Path(genome)) as bases:
        if source.is_dir():
            rows = _of_directory(source, kind, bases, sequence)
        else:
            rows = _of_file(source, kind, bases, sequence, label, window)
    found, names = _targets(rows, kind, source, classes)
    groups = None if rows.groups is None else tuple(rows.groups)
    return LabelledSet(
        tuple(rows.sequences), found, names, tuple(rows.names), tuple(rows.places), groups, rows.ambiguous
    )


def _targets(rows: Rows, kind: str, source: Path, classes: tuple[str, ...] | None) -> tuple[Targets, tuple[str, ...]]:
    columns = list(rows.labels.values())
    if kind == "classification":
        return parse.class_targets(columns[0], rows.names.__getitem__, classes)
    if kind == "per_base":
        return parse.base_targets(columns[0], [*map(len, rows.sequences)], rows.names.__getitem__, classes)
    names = tuple(rows.labels)
    if len(columns) == 1 and (kind == "multilabel" or ";" in columns[0][0]):
        columns = parse.split_outputs(columns[0], rows.names.__getitem__)
        names = tuple(map(str, range(len(columns))))
    found = parse.output_targets(columns, rows.names.__getitem__, kind == "multilabel")
    parse.check_outputs(names, classes, str(source))
    return (found[:, 0] if kind == "regression" and len(columns) == 1 else found), names


def _of_file(path: Path, kind: str, bases: GenomeReader, sequence: str, label: str, window: int) -> Rows:
    name = bare_name(path).lower()
    if name.endswith(TABLES):
        return _of_table(read_table(path), bases, sequence, kind, label)
    if name.endswith(FASTA):
        return _of_fasta(path, labelled=True)
    rows = Rows(labels={label: []})
    if name.endswith(".bed"):
        for place, text in bases.regions(path):
            rows.add(bases.read(place, str(path)), f"{place.contig}:{place.start}-{place.end}", place)
            rows.labels[label].append(text)
        return rows
    if name.endswith((".vcf", ".bcf")):
        for where, place, letters, text in variant_windows(path, bases, label, window):
            rows.add(letters, where, place)
            rows.labels[label].append(text)
        return rows
    if not path.exists():
        raise UserError(f"{path}: no such file or directory; {MISSING}")
    raise UserError(
        f"{path}: found an unknown kind of file, wanted {', '.join(TABLES)}, {', '.join(FASTA)}, .bed, .vcf (plain, .gz, .xz or "
        ".zst), or a directory with a file for each class"
    )


def _of_directory(path: Path, kind: str, bases: GenomeReader, sequence: str) -> Rows:
    """One file for each class, named after it."""
    if kind != "classification":
        raise UserError(
            f"{path}: found a directory, wanted a file: a file for each class is for the kind classification"
        )
    files = {file: _class_of(file) for file in sorted(path.iterdir()) if not file.name.startswith(".")}
    files = {file: name for file, name in files.items() if name is not None and file.is_file()}
    if len(files) < 2:
        inner = ", ".join(sorted(entry.name for entry in path.iterdir()))
        raise UserError(
            f"{path}: found {len(files)} files of sequences ({in_one_line(inner, MOST_QUOTED) or 'it is empty'}), wanted one for "
            "each of two classes or more, as positive.csv.gz and negative.csv.gz"
        )
    rows = Rows(labels={LABEL: []})
    for file, name in files.items():
        if list(files.values()).count(name) > 1:
            raise UserError(f"{path}: found two files of the class '{name}', wanted one; remove or rename the other")
        if bare_name(file).lower().endswith(FASTA):
            found = _of_fasta(file, labelled=False)
        else:
            found = _of_table(read_table(file), bases, sequence, kind, label=None)
        found.labels = {LABEL: [name or ""] * len(found.sequences)}
        rows.extend(found)
    return rows


def _class_of(file: Path) -> str | None:
    """The class that a file is named after; None where it holds no sequences."""
    name = bare_name(file)
    return next((name[: -len(end)] for end in (*TABLES, *FASTA) if name.lower().endswith(end)), None)


def _of_fasta(path: Path, labelled: bool) -> Rows:
    rows = Rows(labels={LABEL: []} if labelled else {})
    for line, header, letters in fasta_records(path):
        where = f"{path}:{line}"
        text, place = header_of(header, where, labelled)
        rows.add(letters, where, place)
        if labelled:
            rows.labels[LABEL].append(text)
    return rows


def _of_table(table: Table, bases: GenomeReader, sequence: str, kind: str, label: str | None) -> Rows:
    """`label` is None where the file itself says the class."""
    labels = {} if label is None else _label_columns(table, kind, label)
    column = table.named(sequence) or (table.named(_SHORT) if sequence == SEQUENCE else None)
    places = _places(table)
    if column is None and (places is None or not bases.given):
        cure = "give the genome that its intervals are cut from" if places else "name a column of the table so"
        raise UserError(f"{table.path}: found no column '{sequence}' among {table.shown()}; {cure}")
    rows = Rows(labels=labels, groups=table.columns.get(GROUP))
    for row in range(len(table)):
        place = None if places is None else places[row]
        if column is not None:
            text = table.columns[column][row]
        elif place is None:
            raise UserError(f"{table.where(row)}: found no interval, wanted contig, start and end; leave the row out")
        else:
            text = bases.read(place, table.where(row))
        rows.add(text, table.where(row), place)
    return rows


def _label_columns(table: Table, kind: str, label: str) -> dict[str, list[str]]:
    if label in table.columns:
        return {label: table.columns[label]}
    several = {
        name.removeprefix(f"{label}_"): table.columns[name] for name in table.columns if name.startswith(f"{label}_")
    }
    if kind in ("multilabel", "regression") and several:
        return several
    also = f" nor columns '{label}_...'" if kind in ("multilabel", "regression") else ""
    raise UserError(
        f"{table.path}: found no column '{label}'{also} among {table.shown()}; name the column that holds the labels"
    )


def _places(table: Table) -> list[Interval | None] | None:
    """Where rows come from; None where the table has no columns of intervals, and for rows where they are empty."""
    contig, start, end = table.named(*_CONTIGS), table.named("start"), table.named("end")
    if contig is None or start is None or end is None:
        return None
    strands = table.columns.get("strand") or [""] * len(table)
    found: list[Interval | None] = []
    columns = zip(table.columns[contig], table.columns[start], table.columns[end], strands, strict=True)
    for row, (name, first, last, strand) in enumerate(columns):
        if not (name or first or last):
            found.append(None)
            continue
        if not (name and _is_position(first) and _is_position(last) and int(first) < int(last)):
            shown = in_one_line(f"{name}:{first}-{last}", MOST_QUOTED)
            raise UserError(
                f"{table.where(row)}: found the interval '{shown}', wanted a contig, a start from 0 and an end above it"
            )
        strand = _STRANDS.get(strand.strip(), strand.strip())
        if strand not in ("+", "-", "."):
            raise UserError(f"{table.where(row)}: found the strand '{in_one_line(strand, 40)}', wanted + or - or .")
        found.append(Interval(name, int(first), int(last), strand))
    return found


def _is_position(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 18
