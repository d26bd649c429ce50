"""HyenaDNA for the transformers library: the model, in plain PyTorch; its shape is in configuration_hyenadna.py, and heads for
labels are in heads_hyenadna.py.

    input_ids_BL --embedding--> r_BLD --block, n_layer times--> --layer norm--> hidden_BLD --embedding transposed--> logits_BLV

    block     r <- r + operator(norm1(r)), then r <- r + mlp(norm2(r)); the residual r stays float32
    operator  x0, x1, v: three projections, each through a short causal filter; out_proj(x0 * (k conv (x1 * v) + bias * x1 * v))
    k         the long filter: an MLP with sines over the position, times a window that decays; float32 in any precision

The long convolution goes through FFTs, so a sequence of L bases costs O(L log L). The filter is a function of `max_seq_len`,
never of the input's length. Everything is causal: what follows a sequence changes nothing of it, so padding belongs on the
right. Padding elsewhere is moved to the right before the blocks, and back after them.

Needs torch and transformers. Sources: HyenaDNA (arXiv 2306.15794), Hyena (arXiv 2302.10866); parameters have the published
names.

B batch, L tokens, D d_model, I d_inner, V vocabulary, E positional features, F width of the filter's MLP, n points of an FFT.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.utils import can_return_tuple

from .configuration_hyenadna import HyenaDNAConfig

_CHANNELS = 64
"""Channels of one FFT call: what the transforms need stays small beside the model's activations."""


def fft_length(minimum: int) -> int:
    """The smallest 2^a 3^b 5^c that is at least `minimum`: other lengths cost an FFT several times as much."""
    lengths = {
        odd << max(0, (-(-minimum // odd) - 1).bit_length())
        for odd in (3**b * 5**c for b in range(minimum.bit_length()) for c in range(minimum.bit_length()))
        if odd < 2 * minimum
    }
    return min(lengths)


def causal_convolution(u_BDL: Tensor, k_DL: Tensor) -> Tensor:
    """y[t] = sum over s <= t of k[s] u[t - s], channel by channel; float32."""
    L = u_BDL.shape[-1]
    n = fft_length(2 * L - 1)
    groups = zip(u_BDL.split(_CHANNELS, dim=1), k_DL.split(_CHANNELS), strict=True)
    return torch.cat(
        [torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(k, n), n)[..., :L] for u, k in groups], dim=1
    )


class Sine(nn.Module):
    """sin(freq * x), with a frequency for each channel that is learnt."""

    def __init__(self, width: int, frequency: float):
        super().__init__()
        self.freq = nn.Parameter(torch.full((1, width), frequency))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape whose last dim is the width; float32."""
        return torch.sin(self.freq.float() * x)


class HyenaFilter(nn.Module):
    """The long filter k, and `bias`, the weight of what skips it."""

    def __init__(self, config: HyenaDNAConfig):
        super().__init__()
        E, width = config.emb_dim, config.filter_order
        self.config = config
        self.bias = nn.Parameter(torch.empty(config.d_model))
        self.implicit_filter = nn.ModuleDict(  # one sine serves all three layers
            {
                "0": nn.Linear(E, width),
                "1": Sine(width, config.activation_freq),
                "2": nn.Linear(width, width),
                "4": nn.Linear(width, width),
                "6": nn.Linear(width, config.d_model, bias=False),
            }
        )

    def forward(self, L: int) -> Tensor:
        """k (D, L), float32. Raises ValueError where L is more than `max_seq_len`."""
        config = self.config
        if config.max_seq_len < L:
            raise ValueError(f"found {L} tokens, wanted at most the model's max_seq_len of {config.max_seq_len}")
        device = self.bias.device
        over = config.max_seq_len
        if config.extension == "extrapolate" and config.extended_from is not None:
            over = config.extended_from
        # In float64, rounded once: a time axis in half precision would have a few hundred distinct values.
        position_L1 = torch.arange(L, device=device, dtype=torch.float64).unsqueeze(1)
        t_L1 = position_L1 / (over - 1)
        bands = (config.emb_dim - 1) // 2
        f_b = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64, device=device)
        angles_Lb = position_L1 * (2 * math.pi / over) * f_b
        h = torch.cat((t_L1, angles_Lb.cos(), -angles_Lb.sin()), dim=1).float()
        layers = self.implicit_filter
        for name in ("0", "2", "4"):
            h = layers["1"](F.linear(h, layers[name].weight.float(), layers[name].bias.float()))
        h_LD = F.linear(h, layers["6"].weight.float())
        slow, fast = math.log(1e-2) / 1.5, math.log(1e-2) / 0.3
        delta_D = torch.linspace(slow, fast, config.d_model, dtype=torch.float64, device=device).float()
        window_LD = torch.exp(t_L1.float() * delta_D) + config.shift
        return (h_LD * window_LD).t()


class IntoResidual(nn.Linear):
    """What a half-block adds to the residual; it begins the smaller, the more layers there are."""


class HyenaOperator(nn.Module):
    """Mixes along the sequence."""

    def __init__(self, config: HyenaDNAConfig):
        super().__init__()
        D = config.d_model
        self.in_proj = nn.Linear(D, 3 * D)
        self.short_filter = nn.Conv1d(3 * D, 3 * D, 3, padding=2, groups=3 * D)
        self.filter_fn = HyenaFilter(config)
        self.out_proj = IntoResidual(D, D)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        L = x_BLD.shape[1]
        x0_BDL, x1_BDL, v_BDL = self.short_filter(self.in_proj(x_BLD).transpose(1, 2))[..., :L].chunk(3, dim=1)
        u_BDL = (x1_BDL * v_BDL).float()
        with torch.autocast(u_BDL.device.type, enabled=False):
            y_BDL = causal_convolution(u_BDL, self.filter_fn(L)) + u_BDL * self.filter_fn.bias.float().unsqueeze(1)
        return self.out_proj((y_BDL.to(x0_BDL.dtype) * x0_BDL).transpose(1, 2))


class MLP(nn.Module):
    """Mixes the channels of a token."""

    def __init__(self, config: HyenaDNAConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, config.d_inner)
        self.fc2 = IntoResidual(config.d_inner, config.d_model)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return self.fc2(F.gelu(self.fc1(x_BLD), approximate="tanh"))


class HyenaBlock(GradientCheckpointingLayer):
    """Operator and MLP on the residual; recomputed in backward after `gradient_checkpointing_enable()`."""

    def __init__(self, config: HyenaDNAConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.mixer = HyenaOperator(config)
        self.norm2 = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.resid_dropout)

    def forward(self, r_BLD: Tensor) -> Tensor:
        """(B, L, D) float32 -> the same."""
        dtype = self.norm1.weight.dtype
        r_BLD = r_BLD + self.dropout(self.mixer(self.norm1(r_BLD.to(dtype)))).float()
        return r_BLD + self.dropout(self.mlp(self.norm2(r_BLD.to(dtype)))).float()


class HyenaBackbone(nn.Module):
    """Embedding, blocks and final norm."""

    def __init__(self, config: HyenaDNAConfig):
        super().__init__()
        self.embeddings = nn.ModuleDict({"word_embeddings": nn.Embedding(config.vocab_size, config.d_model)})
        self.dropout = nn.Dropout(config.embed_dropout)
        self.layers = nn.ModuleList(HyenaBlock(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, embedded_BLD: Tensor) -> list[Tensor]:
        """The embedded tokens, the residual after each block but the last, and the last one's, normed: each (B, L, D)."""
        states = [embedded_BLD]
        r_BLD = self.dropout(embedded_BLD).float()
        for block in self.layers:
            r_BLD = block(r_BLD)
            states.append(r_BLD)
        states[-1] = self.ln_f(r_BLD.to(self.ln_f.weight.dtype))
        return states


class HyenaDNAPreTrainedModel(PreTrainedModel):
    """What transformers has to know of every HyenaDNA."""

    config_class = HyenaDNAConfig
    base_model_prefix = "hyena"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["HyenaBlock"]
    _keep_in_fp32_modules_strict: ClassVar = ["filter_fn"]

    def _init_weights(self, module: nn.Module) -> None:
        """As HyenaDNA begins; what a file holds is not touched."""
        super()._init_weights(module)  # linear layers, embedding and norms
        if isinstance(module, IntoResidual):
            nn.init.normal_(module.weight, std=self.config.initializer_range / math.sqrt(2 * self.config.n_layer))
        elif isinstance(module, nn.Conv1d):
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -(3**-0.5), 3**-0.5)
        elif isinstance(module, Sine):
            nn.init.constant_(module.freq, self.config.activation_freq)
        elif isinstance(module, HyenaFilter):
            nn.init.normal_(module.bias)


class HyenaDNAModel(HyenaDNAPreTrainedModel):
    """Token ids to hidden states."""

    def __init__(self, config: HyenaDNAConfig):
        super().__init__(config)
        self.backbone = HyenaBackbone(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding, which is also the head of the language model."""
        return self.backbone.embeddings["word_embeddings"]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """(B, L) ids, or (B, L, D) embedded -> `last_hidden_state` (B, L, D). `attention_mask` (B, L) is 0 where padding is."""
        x_BLD = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        order_BL = None if attention_mask is None else _padding_last(attention_mask)
        if order_BL is None:
            states = self.backbone(x_BLD)
        else:
            states = [_reordered(x, order_BL.argsort(dim=1)) for x in self.backbone(_reordered(x_BLD, order_BL))]
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states) if wanted else None)


class HyenaDNAForCausalLM(HyenaDNAPreTrainedModel, GenerationMixin):
    """The language model, whose head is the embedding. It keeps no state between tokens: each new one is a whole forward pass."""

    def __init__(self, config: HyenaDNAConfig):
        super().__init__(config)
        self.hyena = HyenaDNAModel(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutput:
        """`logits` (B, L, V); those of the last tokens alone where `logits_to_keep` is not 0.

        `labels` (B, L) are the ids of the same tokens, -100 where they are not scored; padding, and what comes right after
        it, never is. `loss` is the mean over those scored.
        """
        outputs = self.hyena(input_ids, attention_mask, inputs_embeds, output_hidden_states)
        hidden_BLD = outputs.last_hidden_state[:, -logits_to_keep:]
        logits_BLV = F.linear(hidden_BLD, self.hyena.get_input_embeddings().weight)
        loss = None
        if labels is not None:
            if attention_mask is not None:
                there_BL = attention_mask != 0
                scored_BL = there_BL & F.pad(there_BL[:, :-1], (1, 0), value=True)
                labels = labels.masked_fill(~scored_BL, -100)
            loss = self.loss_function(logits_BLV, labels, self.config.vocab_size)
        return CausalLMOutput(loss=loss, logits=logits_BLV, hidden_states=outputs.hidden_states)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, logits_to_keep: int = 1, **_: object
    ) -> dict[str, object]:
        """What the next forward pass gets: all tokens so far. Raises ValueError where a prompt ends with padding."""
        if attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError("found padding after a prompt, wanted it before: set tokenizer.padding_side = 'left'")
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": logits_to_keep}


def _padding_last(attention_mask_BL: Tensor) -> Tensor | None:
    """(B, L): where to take each token from, so that padding comes last. None where it does already."""
    there_BL = attention_mask_BL != 0
    if not (there_BL[:, 1:] & ~there_BL[:, :-1]).any():
        return None
    return there_BL.int().argsort(dim=1, descending=True, stable=True)


def _reordered(x_BLD: Tensor, order_BL: Tensor) -> Tensor:
    return x_BLD.gather(1, order_BL.unsqueeze(2).expand_as(x_BLD))
