"""The published key names, the header that holds a model's shape, and writing weights with both.

    ours: backbone.blocks.3.operator.in_projection.weight  <->  published: backbone.layers.3.mixer.in_proj.weight

The published files alias the filter's frequency three times and carry derived buffers (positions, decay rates); here it
is one parameter, and buffers are computed. A file's header holds the model's shape; `extension` and `extended_from` are
there where a trained model's context was extended, and other readers do not know them: to those a rescaled model is right,
an extrapolated one is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from torch import Tensor

from hyena_ds.config.loading import Invalid
from hyena_ds.config.model import Extension, ModelConfig
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.weights.tensor_file import safetensors_chunks

_BACKBONE = {
    "backbone.embedding.weight": "backbone.embeddings.word_embeddings.weight",
    "backbone.final_norm.weight": "backbone.ln_f.weight",
    "backbone.final_norm.bias": "backbone.ln_f.bias",
}
_BLOCK = {
    "operator.in_projection.weight": "mixer.in_proj.weight",
    "operator.in_projection.bias": "mixer.in_proj.bias",
    "operator.short_filter.weight": "mixer.short_filter.weight",
    "operator.short_filter.bias": "mixer.short_filter.bias",
    "operator.implicit_filter.input.weight": "mixer.filter_fn.implicit_filter.0.weight",
    "operator.implicit_filter.input.bias": "mixer.filter_fn.implicit_filter.0.bias",
    "operator.implicit_filter.frequency": "mixer.filter_fn.implicit_filter.1.freq",
    "operator.implicit_filter.hidden1.weight": "mixer.filter_fn.implicit_filter.2.weight",
    "operator.implicit_filter.hidden1.bias": "mixer.filter_fn.implicit_filter.2.bias",
    "operator.implicit_filter.hidden2.weight": "mixer.filter_fn.implicit_filter.4.weight",
    "operator.implicit_filter.hidden2.bias": "mixer.filter_fn.implicit_filter.4.bias",
    "operator.implicit_filter.output.weight": "mixer.filter_fn.implicit_filter.6.weight",
    "operator.skip": "mixer.filter_fn.bias",
    "operator.out_projection.weight": "mixer.out_proj.weight",
    "operator.out_projection.bias": "mixer.out_proj.bias",
    "operator_norm.weight": "norm1.weight",
    "operator_norm.bias": "norm1.bias",
    "mlp_norm.weight": "norm2.weight",
    "mlp_norm.bias": "norm2.bias",
    "mlp.up.weight": "mlp.fc1.weight",
    "mlp.up.bias": "mlp.fc1.bias",
    "mlp.down.weight": "mlp.fc2.weight",
    "mlp.down.bias": "mlp.fc2.bias",
}
FREQUENCY = "mixer.filter_fn.implicit_filter.1.freq"
FREQUENCY_ALIASES = ("mixer.filter_fn.implicit_filter.3.freq", "mixer.filter_fn.implicit_filter.5.freq")
DERIVED = ("mixer.filter_fn.pos_emb.z", "mixer.filter_fn.pos_emb.t", "mixer.filter_fn.modulation.deltas")


def published_names(layers: int) -> dict[str, str]:
    """Our name -> published name, for every parameter of a model with `layers` blocks."""
    names = dict(_BACKBONE)
    for number in range(layers):
        names.update({f"backbone.blocks.{number}.{a}": f"backbone.layers.{number}.{b}" for a, b in _BLOCK.items()})
    return names


def published_sources(config: ModelConfig) -> tuple[dict[str, str], dict[str, str]]:
    """(our name of every published one, frequency aliases included; the file's metadata: the shape)."""
    sources: dict[str, str] = {}
    for ours, theirs in published_names(config.layers).items():
        sources[theirs] = ours
        if theirs.endswith(FREQUENCY):
            sources |= {theirs.removesuffix(FREQUENCY) + alias: ours for alias in FREQUENCY_ALIASES}
    return sources, _header(config)


def published_tensors(config: ModelConfig, parameters: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(parameters, of our names, under the published ones, frequency aliases included; the file's metadata: the shape)."""
    sources, header = published_sources(config)
    tensors = {theirs: parameters[ours].detach().float() for theirs, ours in sources.items()}
    aliases = [name for name in tensors if name.endswith(FREQUENCY_ALIASES)]
    return tensors | {name: tensors[name].clone() for name in aliases}, header


def write_weights(path: str | Path, config: ModelConfig, parameters: dict[str, Tensor]) -> None:
    """Write a weights.safetensors that `read_weights` and the published code read."""
    tensors, header = published_tensors(config, parameters)
    Path(path).write_bytes(b"".join(safetensors_chunks(tensors, header)))


_KEYS = {
    "width": "d_model",
    "layers": "n_layer",
    "inner_width": "d_inner",
    "maximum_context": "l_max",
    "filter_features": "emb_dim",
    "filter_width": "filter_order",
    "filter_frequency": "w",
    "filter_shift": "shift",
}
"""Fields of a model's config as a file's header has them."""


def _header(config: ModelConfig) -> dict[str, str]:
    extended = {"extension": str(config.extension), "extended_from": str(config.extended_from)}
    return {
        "d_model": str(config.width),
        "n_layer": str(config.layers),
        "d_inner": str(config.mlp_width),
        "l_max": str(config.maximum_context),
        "emb_dim": str(config.filter_features),
        "filter_order": str(config.filter_width),
        "w": str(config.filter_frequency),
        "shift": str(config.filter_shift),
        **(extended if config.extension else {}),
    }


def has_shape(header: Mapping[str, str]) -> bool:
    """Whether a file's header is one of ours, or means to be."""
    return any(key in header for key in ("d_model", "n_layer", "d_inner", "l_max"))


def config_from_header(path: Path, header: Mapping[str, str]) -> tuple[ModelConfig, bool]:
    """(the shape that a file's header gives, whether it gives the shift). Raises UserError where it gives no shape."""
    try:
        config = ModelConfig(
            width=_whole(header, "d_model"),
            layers=_whole(header, "n_layer"),
            inner_width=_whole(header, "d_inner"),
            maximum_context=_whole(header, "l_max"),
            filter_features=_whole(header, "emb_dim", 5),
            filter_width=_whole(header, "filter_order", 64),
            filter_frequency=_number(header, "w", 10.0),
            filter_shift=_number(header, "shift", 0.0),
            extended_from=_whole(header, "extended_from") if "extended_from" in header else None,
            extension=cast(Extension | None, header.get("extension")),  # checked by ModelConfig
        )
        return config, "shift" in header
    except Invalid as error:
        problem = f"{_KEYS.get(error.field, error.field)}: {error.problem}"
    except KeyError as error:
        problem = f"{error} is missing"
    except ValueError as error:
        problem = str(error)
    raise UserError(
        f"{path}: the header does not give the model's shape ({problem}); wanted d_model, n_layer, d_inner and l_max "
        "in the safetensors metadata"
    )


def _whole(header: Mapping[str, str], key: str, default: int | None = None) -> int:
    text = header[key] if default is None else header.get(key, str(default))
    if re.fullmatch(r"-?[0-9]{1,18}", text) is None:
        raise ValueError(f"{key}: found '{in_one_line(text, MOST_QUOTED)}', wanted a whole number")
    return int(text)


def _number(header: Mapping[str, str], key: str, default: float) -> float:
    text = header.get(key, str(default))
    if not text.isascii():
        raise ValueError(f"{key}: found '{in_one_line(text, MOST_QUOTED)}', wanted a number")
    return float(text)
