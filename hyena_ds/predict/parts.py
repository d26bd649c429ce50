"""Results that survive a kill: numbered parts beside the output, each whole or absent, joined when all are there.

    work of part n --write--> OUT.parts/n.arrow          settings.json says what they are parts of
    all parts, in order --publish--> OUT, written beside it and renamed; then OUT.parts is removed

What is in a part follows from the settings alone, never from ranks or from what happened before: the same command after a
kill computes what is missing, and its output has the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyena_ds.errors import UserError
from hyena_ds.files.whole import aside, remove, to_disk, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

_SETTINGS = "settings.json"


def is_whole(output: Path, resume: bool) -> bool:
    """Whether an output is there and may stay as it is. Raises UserError where it is there, and `resume` does not say so."""
    if output.exists() and not resume:
        raise UserError(f"{output}: exists already; name another output, or begin again with --overwrite")
    return output.exists()


class Parts:
    """The parts of one output."""

    def __init__(self, output: Path):
        self.output = output
        self.directory = output.with_name(f"{output.name}.parts")

    def claim(self, settings: dict[str, Any], resume: bool, overwrite: bool, beside: Path | None = None) -> bool:
        """Make the directory ready for parts of `settings`; False where the output is whole already and may stay so.

        Raises UserError where there is an output, or one `beside` it that is written too, or parts of other settings, and
        `overwrite` does not say that they may go.
        """
        described = json.dumps(settings, indent=1, sort_keys=True) + "\n"
        found = self.directory / _SETTINGS
        if overwrite:
            self.remove()
        elif found.is_file():
            different = _differences(found, settings)
            if different:
                raise UserError(
                    f"{self.directory}: found parts of other settings ({different}), wanted those of this command; repeat that "
                    "command, or begin again with --overwrite"
                )
        elif is_whole(self.output, resume):
            return False
        elif beside is not None:
            is_whole(beside, resume=False)
        self.directory.mkdir(exist_ok=True)
        write_whole(found, described)
        return True

    def missing(self, count: int) -> list[int]:
        """Numbers of the parts, of `count`, that are not there yet."""
        return [number for number in range(count) if not self._file(number).is_file()]

    def are_empty(self) -> bool:
        """Whether no part is there yet."""
        return not any(self.directory.glob("*.arrow"))

    def write(self, number: int, table: pa.Table) -> None:
        """Put a part on the disk, whole."""
        import pyarrow as pa

        with aside(self._file(number), own=True) as partial, partial.open("wb") as file:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            to_disk(file)

    def tables(self, count: int) -> Iterator[pa.Table]:
        """All parts, in order. Raises UserError where one is damaged."""
        import pyarrow as pa

        for number in range(count):
            try:
                with pa.ipc.open_file(str(self._file(number))) as reader:
                    yield reader.read_all()
            except (OSError, pa.ArrowInvalid) as error:
                raise UserError(
                    f"{self._file(number)}: cannot be read ({error}); remove it, and run the command again"
                ) from None

    def publish(self, output: Path, write: Callable[[Path], None]) -> None:
        """Let `write(path)` make an output beside its place, under a name that ends as it should, and move it there."""
        unfinished = output.with_name(f".unfinished.{output.name}")  # the parts may be on another disk
        remove(unfinished)
        try:
            write(unfinished)
            if output.is_dir():
                remove(output)
            os.replace(unfinished, output)
        finally:
            remove(unfinished)

    def remove(self) -> None:
        """Remove the parts."""
        remove(self.directory)

    def _file(self, number: int) -> Path:
        return self.directory / f"{number:08d}.arrow"


def _differences(file: Path, wanted: dict[str, Any]) -> str:
    """Names of the settings that are others than those written down."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return "damaged"
    if not isinstance(found, dict):
        return "damaged"
    wanted = json.loads(json.dumps(wanted))
    return ", ".join(sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key)))
