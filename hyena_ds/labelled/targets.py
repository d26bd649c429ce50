"""From the text of labels to numbers, for each kind of task.

n sequences, K outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.labelled.sets import UNLABELLED

MOST_CLASSES = 1000
"""More are numbers that were taken for names."""
_WHOLE = re.compile(r"[+-]?\d{1,15}(?:\.0*)?", re.ASCII)
_MISSING = ("", ".", "nan", "na", "none", "null")
"""How files write that something was not measured, in small letters."""

Where = Callable[[int], str]
"""What a message calls the sequence of a number."""


def class_targets(
    labels: Sequence[str], where: Where, classes: tuple[str, ...] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """((n,) indices, names of the classes). A label is a text; 1, 1.0 and 01 are one class where all labels are whole numbers.

    With `classes` a label is one of them. Raises UserError for a label that is empty or unknown, for one class alone, and
    for more than MOST_CLASSES.
    """
    texts = [label.strip() for label in labels]
    for row, text in enumerate(texts):
        if text.lower() in ("", "nan"):
            raise UserError(f"{where(row)}: found no label, wanted the name of a class; label it, or leave it out")
    distinct = set(texts)
    whole = all(map(_WHOLE.fullmatch, distinct))
    name_of = {text: str(int(text.partition(".")[0])) if whole else text for text in distinct}
    found = set(name_of.values())
    if classes is None:
        if len(found) == 1:
            raise UserError(
                f"{where(0)}: found the one class '{_short(found.pop())}' in all {len(texts):,} rows, wanted two or more; "
                "name another column of labels, or another kind of task"
            )
        if len(found) > MOST_CLASSES:
            raise UserError(
                f"{where(0)}: found {len(found):,} classes, wanted at most {MOST_CLASSES:,}; if the labels are measurements, "
                "the kind is regression"
            )
        classes = tuple(sorted(found, key=int) if whole else sorted(found))
    index = {name: number for number, name in enumerate(classes)}
    if not found <= index.keys():
        row = next(row for row, text in enumerate(texts) if name_of[text] not in index)
        raise UserError(
            f"{where(row)}: found the class '{_short(texts[row])}', which the train set does not have, wanted one of "
            f"{_short(', '.join(classes))}"
        )
    number_of = {text: index[name] for text, name in name_of.items()}
    return np.array([number_of[text] for text in texts], dtype=np.int64), classes


def output_targets(
    columns: Sequence[Sequence[str]], where: Where, multilabel: bool
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """(n, K) values of K columns of text; of a multilabel set 0 or 1, and NaN where nothing was measured.

    Raises UserError for what is no such number.
    """
    wanted = "0, 1, or nothing where it was not measured" if multilabel else "a finite number"
    found = np.empty((len(columns[0]), len(columns)), dtype=np.float32)
    for k, column in enumerate(columns):
        for row, text in enumerate(column):
            value = _number(text)
            if multilabel and text.strip().lower() in _MISSING:
                value = np.nan
            elif value is None or not (value in (0, 1) if multilabel else abs(value) < 3e38):
                raise UserError(f"{where(row)}: found '{_short(text)}' as a label, wanted {wanted}; correct the row")
            found[row, k] = value
    return found.astype(np.uint8) if multilabel and not np.isnan(found).any() else found


def split_outputs(labels: Sequence[str], where: Where) -> list[list[str]]:
    """K columns of labels that are written as `0;1;0`. Raises UserError where rows have more or fewer."""
    rows = [label.split(";") for label in labels]
    for row, values in enumerate(rows):
        if len(values) != len(rows[0]):
            raise UserError(
                f"{where(row)}: found {len(values)} outputs in the label, wanted the {len(rows[0])} of the first row, "
                "separated by semicolons"
            )
    return [list(column) for column in zip(*rows, strict=True)]


def base_targets(
    labels: Sequence[str], lengths: Sequence[int], where: Where, classes: tuple[str, ...] | None
) -> tuple[tuple[NDArray[np.int8], ...], tuple[str, ...]]:
    """(n arrays of indices, names of the classes) of labels with a digit for each base, and a dot where it has none.

    Raises UserError for a label of another length or with another character, for one class alone, and for one that
    `classes` does not have.
    """
    seen = np.zeros(256, dtype=bool)
    rows = []
    for row, (label, length) in enumerate(zip(labels, lengths, strict=True)):
        text = label.strip()
        if len(text) != length:
            raise UserError(
                f"{where(row)}: found a label of {len(text):,} characters beside {length:,} bases, wanted one for each base"
            )
        codes_l = np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)
        seen[codes_l] = True
        rows.append(codes_l)
        odd = text.translate(_DIGITS)
        if odd:
            raise UserError(f"{where(row)}: found '{_short(odd[0])}' in the label, wanted digits, or a dot for none")
    found = tuple(chr(code) for code in np.flatnonzero(seen).tolist() if chr(code) != ".")
    if classes is None:
        if len(found) < 2:
            what = f"the one class '{found[0]}'" if found else "no class"
            raise UserError(f"{where(0)}: found {what} in the labels of all bases, wanted two or more")
        classes = found
    strange = [name for name in found if name not in classes]
    if strange:
        row = next(row for row, codes_l in enumerate(rows) if ord(strange[0]) in codes_l)
        raise UserError(
            f"{where(row)}: found the class '{strange[0]}', which the train set does not have, wanted one of "
            f"{_short(', '.join(classes))}"
        )
    index = np.full(256, UNLABELLED, dtype=np.int8)
    for number, name in enumerate(classes):
        index[ord(name)] = number
    return tuple(index[codes_l] for codes_l in rows), classes


def check_outputs(names: tuple[str, ...], classes: tuple[str, ...] | None, where: str) -> None:
    """Raise UserError where a set has other outputs than `classes`, those of the train set."""
    if classes is not None and names != classes:
        raise UserError(
            f"{where}: found {len(names)} outputs ({_short(', '.join(names))}), wanted the {len(classes)} of the train set "
            f"({_short(', '.join(classes))})"
        )


_DIGITS = {ord(character): None for character in "0123456789."}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _short(text: str) -> str:
    return in_one_line(text, MOST_QUOTED)
