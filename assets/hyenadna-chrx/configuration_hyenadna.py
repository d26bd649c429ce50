"""The shape of a HyenaDNA for the transformers library; the model is in modeling_hyenadna.py, its heads in heads_hyenadna.py."""

from __future__ import annotations

from typing import ClassVar

from transformers import PretrainedConfig


class HyenaDNAConfig(PretrainedConfig):
    """Shape of a HyenaDNA."""

    model_type = "hyenadna"
    attribute_map: ClassVar = {"hidden_size": "d_model", "num_hidden_layers": "n_layer"}

    vocab_size: int = 16
    d_model: int = 128
    n_layer: int = 2
    d_inner: int = 512
    max_seq_len: int = 1026
    """Tokens over which the filter is defined."""
    extension: str | None = None
    """With "extrapolate" the filter's time runs from 0 to 1 over the first `extended_from` tokens, and on."""
    extended_from: int | None = None
    emb_dim: int = 5
    """Positional features of the filter; its MLP has the width `filter_order` and begins with `activation_freq`."""
    filter_order: int = 64
    activation_freq: float = 10.0
    shift: float = 0.05
    """Added to the filter's window."""
    embed_dropout: float = 0.1
    resid_dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    pooling: str = "mean"
    """mean, maximum, last or first: how a classifier makes one state of a sequence."""
    head_hidden: int | None = None
    """Width of a hidden layer of a classifier's head; None: there is none."""
    head_bias: bool = False
    """Whether a classifier's last layer has a bias."""
    pad_token_id: int | None = 4
    use_cache: bool = False
