"""A trained model with a longer maximum context: the filter stretched over it, or going on beyond it."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from hyena_ds.config.loading import Invalid
from hyena_ds.config.model import Extension
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.weights.reading import Weights


def extended(weights: Weights, maximum_context: int | None, extension: Extension | None) -> Weights:
    """The same parameters with another maximum context; for what the extensions do see `ModelConfig.extension`.

    Raises UserError where one is given without the other, the context is not longer, or a filter whose time already runs
    beyond 1 would have to be stretched.
    """
    if maximum_context is None and extension is None:
        return weights
    path, config = weights.path, weights.config
    if maximum_context is None or extension is None:
        raise UserError(f"{path}: found one of maximum context and extension, wanted both, or neither")
    if extension not in get_args(Extension):
        shown = in_one_line(str(extension), MOST_QUOTED)
        raise UserError(f"{path}: extension: found '{shown}', wanted {' or '.join(get_args(Extension))}")
    if maximum_context <= config.maximum_context:
        raise UserError(
            f"{path}: maximum context: found {maximum_context:,}, wanted more than the model's {config.maximum_context:,}; "
            "shorter sequences need no extension, they use a prefix of its filter"
        )
    if extension == "rescale" and config.extension == "extrapolate":
        raise UserError(
            f"{path}: found a model that was extrapolated from {config.extended_from:,} tokens, which cannot be rescaled; "
            "extrapolate it further"
        )
    try:
        longer = replace(
            config, maximum_context=maximum_context, extended_from=config.time_context, extension=extension
        )
    except Invalid as error:
        raise UserError(f"{path}: {error.field.replace('_', ' ')}: {error.problem}") from None
    return replace(weights, config=longer)
