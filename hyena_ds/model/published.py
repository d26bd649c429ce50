"""The published key names, and reading and writing weights under them.

    ours: backbone.blocks.3.operator.in_projection.weight  <->  published: backbone.layers.3.mixer.in_proj.weight

The published files alias the filter's frequency three times and carry derived buffers (positions, decay rates); here it
is one parameter, and buffers are computed. A file's header holds the model's shape; `extension` and `extended_from` are
there where a trained model's context was extended, and other readers do not know them: to those a rescaled model is right,
an extrapolated one is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyena_ds.config.model import Extension, ModelConfig
from hyena_ds.errors import UserError
from hyena_ds.model.backbone import HyenaDNA

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
_FREQUENCY = "mixer.filter_fn.implicit_filter.1.freq"
_FREQUENCY_ALIASES = ("mixer.filter_fn.implicit_filter.3.freq", "mixer.filter_fn.implicit_filter.5.freq")
_DERIVED = ("mixer.filter_fn.pos_emb.z", "mixer.filter_fn.pos_emb.t", "mixer.filter_fn.modulation.deltas")

PUBLISHED_INFERENCE_SHIFT = 0.05


def published_names(layers: int) -> dict[str, str]:
    """Our name -> published name, for every parameter of a model with `layers` blocks."""
    names = dict(_BACKBONE)
    for number in range(layers):
        names.update({f"backbone.blocks.{number}.{a}": f"backbone.layers.{number}.{b}" for a, b in _BLOCK.items()})
    return names


def read_weights(path: str | Path, shift: float | None = None) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and parameters (our names, float32) of a safetensors file with published key names.

    `shift` overrides the file's own; a file that says none gets the published inference code's 0.05. Raises UserError
    when the file is unreadable, or a key is missing, unknown or of another shape than the header says.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            published = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); name a weights.safetensors") from None
    config = _config_from(path, header, shift)
    parameters: dict[str, Tensor] = {}
    expected = {name: parameter.shape for name, parameter in _skeleton(config).named_parameters()}
    for ours, theirs in published_names(config.layers).items():
        tensor = published.pop(theirs, None)
        if tensor is None:
            raise UserError(f"{path}: the key '{theirs}' is missing; wanted a HyenaDNA of {config.layers} layers")
        if tensor.shape != expected[ours]:
            raise UserError(f"{path}: '{theirs}' has shape {tuple(tensor.shape)}, wanted {tuple(expected[ours])}")
        parameters[ours] = tensor.float()
    strangers = [key for key in published if not key.endswith((*_FREQUENCY_ALIASES, *_DERIVED, "lm_head.weight"))]
    if strangers:
        raise UserError(f"{path}: found the unknown key '{strangers[0]}'; wanted the published HyenaDNA key names")
    return config, parameters


def load_model(path: str | Path, shift: float | None = None) -> HyenaDNA:
    """A model from a `weights.safetensors` with published key names and its shape in the header; see `read_weights`.

    `module(token_ids)` maps (B, L) ids to logits (B, L, 16); `module.backbone(token_ids)` to hidden states.
    """
    config, parameters = read_weights(path, shift)
    model = HyenaDNA(config)
    model.load_state_dict(parameters)
    return model.eval()


def published_tensors(config: ModelConfig, parameters: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(parameters, of our names, under the published ones, frequency aliases included; the file's metadata: the shape)."""
    tensors: dict[str, Tensor] = {}
    for ours, theirs in published_names(config.layers).items():
        tensors[theirs] = parameters[ours].detach().float()
        if theirs.endswith(_FREQUENCY):
            for alias in _FREQUENCY_ALIASES:
                tensors[theirs.removesuffix(_FREQUENCY) + alias] = tensors[theirs].clone()
    return tensors, _header(config)


def write_weights(path: str | Path, config: ModelConfig, parameters: dict[str, Tensor]) -> None:
    """Write a weights.safetensors that `read_weights` and the published code read."""
    tensors, header = published_tensors(config, parameters)
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path, metadata=header)


def _skeleton(config: ModelConfig) -> HyenaDNA:
    with torch.device("meta"):
        return HyenaDNA(config)


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


def _config_from(path: Path, header: dict[str, str], shift: float | None) -> ModelConfig:
    try:
        return ModelConfig(
            width=int(header["d_model"]),
            layers=int(header["n_layer"]),
            inner_width=int(header["d_inner"]),
            maximum_context=int(header["l_max"]),
            filter_features=int(header.get("emb_dim", 5)),
            filter_width=int(header.get("filter_order", 64)),
            filter_frequency=float(header.get("w", 10)),
            filter_shift=shift if shift is not None else float(header.get("shift", PUBLISHED_INFERENCE_SHIFT)),
            extended_from=int(header["extended_from"]) if "extended_from" in header else None,
            extension=cast(Extension | None, header.get("extension")),  # checked by ModelConfig
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path}: the header does not give the model's shape ({error}); wanted d_model, n_layer, d_inner and l_max "
            "in the safetensors metadata"
        ) from None
