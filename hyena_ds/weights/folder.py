"""What config.json beside a file of weights says: of the published folders, the -hf ones, and MultiMolecule's.

It is believed only where the weights themselves are silent: the maximum context and, rarely, the shift. What it says of
the architecture has to be a HyenaDNA that is represented here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from hyena_ds.config.limits import MOST_CONTEXT
from hyena_ds.config.model import Extension, ModelConfig
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line

MOST_BYTES = 1 << 20
_MAXIMUM = ("l_max", "max_seq_len", "max_position_embeddings")
_SIZES = {
    "width": ("d_model", "hidden_size"),
    "layers": ("n_layer", "num_hidden_layers"),
    "mlp_width": ("d_inner", "intermediate_size"),
    "maximum_context": _MAXIMUM,
}
"""Fields of a model's config, and what others call them."""
_ARCHITECTURE: dict[str, tuple[Any, ...]] = {
    "hyena_order": (2,),
    "order": (2,),
    "num_inner_mlps": (2,),
    "short_filter_order": (3,),
    "layer_norm_epsilon": (1e-5,),
    "layer_norm_eps": (1e-5,),
    "modulate": (True,),
    "bidirectional": (False,),
}
"""Keys that may be there, and the values that are represented."""


@dataclass(frozen=True)
class Told:
    """The content of a config.json; nothing, where there is none."""

    path: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    """The keys of the file, and before them those of its `layer`."""

    @property
    def maximum_context(self) -> int | None:
        """Tokens over which the filter is defined, where it says so."""
        return self._size(_MAXIMUM)

    @property
    def shift(self) -> float | None:
        """The filter's shift, which the published standalone code takes from `layer`."""
        value = self.values.get("shift")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong("shift", "a number")
        return float(value)

    @property
    def extension(self) -> dict[str, Any]:
        """How the filter was extended, as fields of a model's config, where it says so as `hyena-ds export` writes it."""
        extension = self.values.get("extension")
        if extension is None:
            return {}
        if extension not in get_args(Extension):
            raise self._wrong("extension", " or ".join(get_args(Extension)))
        return {"extension": extension, "extended_from": self._size(("extended_from",))}

    def check(self, weights: Path) -> None:
        """Raise UserError where it describes a model of another architecture than the one that `weights` would become."""
        for key, wanted in _ARCHITECTURE.items():
            if key in self.values and self.values[key] not in (*wanted, None):
                raise self._wrong(key, f"{wanted[0]}, which is all that {weights.name} can be loaded as")

    def disagreements(self, config: ModelConfig) -> list[str]:
        """A sentence for each size that it gives otherwise than the weights."""
        found = []
        for name, keys in _SIZES.items():
            said = self._size(keys)
            if said is not None and said != getattr(config, name):
                found.append(f"{self.path} says {name} {said}, the weights have {getattr(config, name)}: took theirs")
        return found

    def _size(self, keys: tuple[str, ...]) -> int | None:
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_CONTEXT:
                raise self._wrong(key, f"a whole number from 1 to {MOST_CONTEXT:,}")
            return value
        return None

    def _wrong(self, key: str, wanted: str) -> UserError:
        shown = in_one_line(repr(self.values[key])[: 2 * MOST_QUOTED], MOST_QUOTED)
        return UserError(f"{self.path}: {key}: found {shown}, wanted {wanted}")


def read_told(path: Path) -> Told:
    """What a config.json says. Raises UserError where it is there and no JSON object of a usual size."""
    if not path.exists():
        return Told()
    if not path.is_file():
        raise UserError(f"{path}: not a file; wanted the model's config, or none")
    with path.open("rb") as file:
        raw = file.read(MOST_BYTES + 1)
    try:
        content = json.loads(raw) if len(raw) <= MOST_BYTES else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: found no JSON object of at most {MOST_BYTES:,} bytes, wanted the model's config")
    layer = content.get("layer")
    return Told(path, {**content, **(layer if isinstance(layer, dict) else {})})
