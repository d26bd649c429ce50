"""Where a number comes from, said beside it: no row of a table can be made without its kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from hyena_ds.text import markdown_table

Kind = Literal["measured", "counted", "data sheet", "assumed"]
"""measured: a command printed it, on a machine. counted: of the code or of a config. data sheet: a maker's. assumed: all else, and
whatever is made with something that is assumed."""


class Sourced(NamedTuple):
    """A row."""

    cells: tuple[str, ...]
    kind: Kind
    source: str
    """The command and the machine, what counts it, which data sheet, or why it is assumed."""


def sourced_table(titles: Iterable[str], rows: Iterable[Sourced]) -> str:
    """A table in Markdown, with kind and source as its last columns."""
    return "\n".join(markdown_table([*titles, "kind", "from"], [(*row.cells, row.kind, row.source) for row in rows]))
