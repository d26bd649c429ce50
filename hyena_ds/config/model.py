"""`model` in a run's config: the shape of a HyenaDNA, and how a trained one is extended to longer contexts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from hyena_ds.config.limits import MOST, MOST_CONTEXT, MOST_LAYERS, MOST_WIDTH, Bound, Bounded
from hyena_ds.config.loading import require as _require

Extension = Literal["rescale", "extrapolate"]


@dataclass(frozen=True)
class ModelConfig(Bounded):
    """Shape of a HyenaDNA."""

    width: Annotated[int, Bound(1, MOST_WIDTH)]
    """Channels of the residual stream, D."""
    layers: Annotated[int, Bound(1, MOST_LAYERS)]
    """Number of blocks."""
    maximum_context: Annotated[int, Bound(2, MOST_CONTEXT)]
    """Tokens over which the implicit filter is defined; every context length must fit into it."""
    inner_width: Annotated[int, Bound(-MOST_WIDTH, MOST_WIDTH)] = 0
    """Hidden width of the MLP; 0 means 4 times `width`."""
    filter_width: Annotated[int, Bound(1, MOST_WIDTH)] = 64
    """Hidden width of the implicit filter's MLP."""
    filter_features: Annotated[int, Bound(-MOST_WIDTH, MOST_WIDTH)] = 5
    """Positional features of the implicit filter: 1 for time, and an even number of sines and cosines."""
    filter_frequency: Annotated[float, Bound(-MOST, MOST)] = 10.0
    """Initial frequency of the filter's sines."""
    filter_shift: Annotated[float, Bound(-MOST, MOST)] = 0.0
    """Constant added to the filter's decay: 0.0 in the published training code, 0.05 in the published inference code."""
    extended_from: int | None = None
    """Maximum context of the trained model that `initialize_from` names, when this one extends it to `maximum_context`.
    For a model that was extrapolated before, the context that it was extrapolated from."""
    extension: Extension | None = None
    """How the trained filter fills the larger `maximum_context`.

    extrapolate: below `extended_from` the filter stays as it is; beyond it time runs on, and the filter fades as fast as
    before (its slowest channel to 1 % at 1.5 times `extended_from`). Inputs of the old lengths give exactly what they gave.
    Choose it to keep what the model knows, or to feed it longer sequences; its reach in a layer hardly grows.

    rescale: the filter is stretched over `maximum_context`, as if the model had been made for it. It reaches all the way,
    but the distances it has learnt are stretched too. Choose it for long-range reach, and train on: at first it is worse."""
    embedding_dropout: float = 0.1
    """Probability that an element of the embedding is dropped."""
    residual_dropout: float = 0.0
    """Probability that an element of a half-block's output is dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.inner_width >= 0, "inner_width", f"found {self.inner_width}, wanted a width or 0")
        together = (self.extended_from is None) == (self.extension is None)
        _require(together, "extension", "wanted extension and extended_from together, or neither")
        known = self.extension is None or self.extension in get_args(Extension)
        _require(known, "extension", f"found '{self.extension}', wanted {' or '.join(get_args(Extension))}")
        _require(
            self.extended_from is None or 2 <= self.extended_from < self.maximum_context,
            "extended_from",
            f"found {self.extended_from}, wanted 2 to below maximum_context {self.maximum_context}",
        )
        odd = self.filter_features >= 3 and self.filter_features % 2 == 1
        _require(odd, "filter_features", f"found {self.filter_features}, wanted an odd number from 3 on")
        for name in ("embedding_dropout", "residual_dropout"):
            value = getattr(self, name)
            _require(0.0 <= value < 1.0, name, f"found {value}, wanted a probability from 0 to below 1")

    @property
    def mlp_width(self) -> int:
        """Channels inside the MLP: `inner_width`, or four times the width."""
        return self.inner_width or 4 * self.width

    @property
    def time_context(self) -> int:
        """Tokens over which the filter's time runs from 0 to 1: fewer than `maximum_context` where it was extrapolated."""
        if self.extension == "extrapolate":
            assert self.extended_from is not None
            return self.extended_from
        return self.maximum_context
