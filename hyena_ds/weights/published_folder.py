"""A model as a folder of the published layout, which the published code opens: a config, and a checkpoint of Lightning's.

    model, parameters --> config.json  weights.ckpt

The published code does not compute positions and decay rates but reads them from the checkpoint, as long as the maximum
context. So it also computes the filter of a model that was extrapolated. Source: HazyResearch/hyena-dna, huggingface.py.
"""

from __future__ import annotations

import io
import json
from typing import Any

import torch
from torch import Tensor

from hyena_ds.config.model import ModelConfig
from hyena_ds.errors import UserError
from hyena_ds.genome.tokenizer import LETTERS, SPECIALS
from hyena_ds.model.filter import FilterShape, decay_rates, positional_features
from hyena_ds.weights.published import published_tensors

MOST_TOKENS = 1 << 24
"""Tokens of a maximum context: the files hold numbers for each."""
_CPU = torch.device("cpu")


def published_files(config: ModelConfig, parameters: dict[str, Tensor]) -> dict[str, bytes]:
    """The folder's files by name. Raises UserError where the maximum context is too long for a file of this kind."""
    if config.maximum_context > MOST_TOKENS:
        raise UserError(
            f"--format published: found a maximum_context of {config.maximum_context:,} tokens, wanted at most "
            f"{MOST_TOKENS:,}: files of this layout hold every position; export to --format huggingface"
        )
    tensors, _ = published_tensors(config, parameters)
    derived = _derived(config)  # the same in every layer, and once in the file
    for number in range(config.layers):
        tensors |= {f"backbone.layers.{number}.mixer.filter_fn.{name}": tensor for name, tensor in derived.items()}
    tensors["lm_head.weight"] = tensors["backbone.embeddings.word_embeddings.weight"]
    content = io.BytesIO()
    torch.save({"state_dict": {f"model.{name}": tensor.cpu() for name, tensor in tensors.items()}}, content)
    return {"config.json": (json.dumps(_config(config), indent=2) + "\n").encode(), "weights.ckpt": content.getvalue()}


def _derived(config: ModelConfig) -> dict[str, Tensor]:
    """Positions and decay rates of a filter."""
    L = config.maximum_context
    shape = FilterShape(config.width, L, config.time_context, config.filter_features, config.filter_shift)
    z_1LE = positional_features(shape, 0, L, _CPU).t().contiguous().unsqueeze(0)
    return {
        "pos_emb.z": z_1LE,
        "pos_emb.t": z_1LE[:, :, :1].clone(),
        "modulation.deltas": -decay_rates(config.width, _CPU).float().view(1, 1, -1),
    }


def _config(config: ModelConfig) -> dict[str, Any]:
    extended = {"extension": config.extension, "extended_from": config.extended_from}
    return {
        "d_model": config.width,
        "n_layer": config.layers,
        "d_inner": config.mlp_width,
        "vocab_size": len(SPECIALS) + len(LETTERS),
        "pad_vocab_size_multiple": 8,
        "embed_dropout": config.embedding_dropout,
        "resid_dropout": config.residual_dropout,
        "residual_in_fp32": True,
        "fused_mlp": False,
        "fused_dropout_add_ln": False,
        "checkpoint_mixer": False,
        "checkpoint_mlp": False,
        **(extended if config.extension else {}),
        "layer": {
            "_name_": "hyena",
            "emb_dim": config.filter_features,
            "filter_order": config.filter_width,
            "l_max": config.maximum_context,
            "short_filter_order": 3,
            "modulate": True,
            "shift": config.filter_shift,
            "w": config.filter_frequency,
            "lr_pos_emb": 0.0,
        },
    }
