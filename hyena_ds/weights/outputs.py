"""Numbers that others got from the published weights, against which weights at hand can be checked.

    published_outputs/small-32k.json    mean next-base loss of eight regions of hg38, over all columns and over A, C, G, T
    published_outputs/large-1m.json     mean hidden state of ACGTNACGT; medium-160k.json the same

Each file names its model, revision and source.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from hyena_ds.config.model import ModelConfig
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line

MOST_BYTES = 1 << 22
_REGION = re.compile(r"([^:\s]{1,100}):([0-9]{1,12})-([0-9]{1,12})")
_SIZES = {"width": "d_model", "layers": "n_layer", "maximum_context": "l_max"}


@dataclass(frozen=True)
class Region:
    """Bases of a genome, 0-based and half-open."""

    name: str
    """As the file calls it: chr1:100000000-100001000."""
    contig: str
    start: int
    end: int
    losses: tuple[float, float]
    """Nats a base: over all columns, and over A, C, G, T alone."""


@dataclass(frozen=True)
class Recorded:
    """What one model gave."""

    path: Path
    model: str
    source: str
    shape: dict[str, int]
    """Width, layers and maximum context of the model."""
    sequence: str
    """Bases whose mean hidden state is known; empty where none is."""
    hidden_D: tuple[float, ...]
    regions: tuple[Region, ...]

    def fits(self, config: ModelConfig) -> bool:
        """Whether it may be of a model of this shape."""
        return all(getattr(config, name) == size for name, size in self.shape.items())


def shipped_outputs(config: ModelConfig) -> Recorded:
    """The recorded outputs of the published model of this shape. Raises UserError where there is none."""
    directory = Path(str(files("hyena_ds.weights"))) / "published_outputs"
    recorded = [read_outputs(path) for path in sorted(directory.glob("*.json"))]
    for each in recorded:
        if each.fits(config):
            return each
    shape = ", ".join(f"{name} {getattr(config, name)}" for name in _SIZES)
    known = ", ".join(each.model.rpartition("/")[2] for each in recorded)
    raise UserError(
        f"found no published outputs of a model with {shape}, there are those of {known}; name a file of your own with "
        "--outputs"
    )


def read_outputs(path: Path) -> Recorded:
    """The outputs that a file holds. Raises UserError where it does not say what they are, or they cannot be."""
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        content = json.loads(raw) if len(raw) <= MOST_BYTES else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a JSON file of outputs") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: found no JSON object of at most {MOST_BYTES:,} bytes, wanted recorded outputs")
    said = {key: content.get(key, "") for key in ("model", "source", "input")}
    hidden, regions = content.get("values", []), content.get("regions_hg38", {})
    if not all(isinstance(value, str) for value in said.values()):
        raise UserError(f"{path}: found model, source or input that is no text")
    if not (isinstance(hidden, list) and all(map(_is_number, hidden)) and bool(hidden) == bool(said["input"])):
        raise UserError(f"{path}: values: wanted a list of numbers, with the sequence that they are of as input")
    if not isinstance(regions, dict) or not (regions or hidden):
        raise UserError(f"{path}: found neither values nor regions_hg38, wanted one of them")
    shape = {name: content[key] for name, key in _SIZES.items() if key in content}
    rows = tuple(_region(path, name, losses) for name, losses in regions.items())
    return Recorded(path, said["model"], said["source"], shape, said["input"], tuple(hidden), rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _region(path: Path, name: str, losses: Any) -> Region:
    match = _REGION.fullmatch(name)
    length = int(match[3]) - int(match[2]) if match else 0
    good = isinstance(losses, list) and len(losses) == 2 and all(map(_is_number, losses))
    if match is None or not 2 <= length <= 1_000_000 or not good:
        shown = in_one_line(name, MOST_QUOTED)
        raise UserError(
            f"{path}: regions_hg38: found '{shown}', wanted CONTIG:START-END of 2 to 1,000,000 bases, and two losses"
        )
    return Region(name, match[1], int(match[2]), int(match[3]), (float(losses[0]), float(losses[1])))
