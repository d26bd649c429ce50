"""Bases after prompts: prefill, then a base at a time, for a batch of prompts at once.

    prompts of this row --prefill, all its ranks--> the state of each on its owner --Decoder, sampling--> bases

A row is a sequence-parallel group: its ranks share the forward pass of a prompt, and then decode different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from hyena_ds.config.model import ModelConfig
from hyena_ds.errors import LocalError
from hyena_ds.genome.tokenizer import LETTERS
from hyena_ds.predict.decoder import Decoder
from hyena_ds.predict.predictor import Predictor
from hyena_ds.predict.prefill import Prefix, prefill
from hyena_ds.predict.prompts import Prompt
from hyena_ds.predict.sampling import BASES, Sampling

_COLUMNS = [LETTERS[base] for base in BASES]
"""Token ids of the bases, the only ones that are ever drawn: neighbours."""
_MOST_BYTES = 1 << 30
"""Memory of the states that are decoded together; a batch that would take more is made smaller."""
_REPORTED = 64
"""Steps after which the progress is told."""


def generate(
    predictor: Predictor,
    prompts: Sequence[Prompt],
    tokens: int,
    sampling: Sampling,
    batch: int,
    progress: Callable[[int], object] = lambda bases: None,
) -> Iterator[tuple[Prompt, str]]:
    """(prompt, `tokens` bases after it) of those that this rank owns, `batch` prompts at a time at most. Collective in the group.

    `progress` is called with numbers of bases. The bases are those of the prompt, the model and the settings, whatever the
    batch. Raises UserError where a prompt does not fit, as `prefill` does, and LocalError where the model gives no finite logits.
    """
    if not prompts:
        return
    predictor.filters(max(len(prompt.token_ids) for prompt in prompts) + tokens)
    decoder, ranks = Decoder(predictor, tokens), predictor.exchange.size
    at_once = ranks * prompts_at_once(predictor.model.config, tokens, batch)
    for first in range(0, len(prompts), at_once):
        own = []
        for place, prompt in enumerate(prompts[first : first + at_once]):
            prefix = prefill(predictor, torch.from_numpy(prompt.token_ids).long(), tokens, owner=place % ranks)
            if prefix is not None:
                own.append((prompt, prefix))
        if own:
            yield from _continued(decoder, own, tokens, sampling, progress)


def state_bytes(config: ModelConfig, tokens: int) -> int:
    """Memory of a prompt's state, for so many `tokens` to come; the decoder's filters take as much."""
    return 4 * config.layers * config.width * tokens


def prompts_at_once(config: ModelConfig, tokens: int, batch: int) -> int:
    """Prompts that a rank decodes together."""
    return max(1, min(batch, _MOST_BYTES // state_bytes(config, tokens)))


def _continued(
    decoder: Decoder,
    own: Sequence[tuple[Prompt, Prefix]],
    tokens: int,
    sampling: Sampling,
    progress: Callable[[int], object],
) -> Iterator[tuple[Prompt, str]]:
    prompts = [prompt for prompt, _ in own]
    decoding = decoder.start([prefix for _, prefix in own])
    first, last = _COLUMNS[0], _COLUMNS[-1] + 1
    uniforms = [sampling.uniforms(prompt.number, tokens) for prompt in prompts]
    chosen = np.empty((tokens, len(prompts)), dtype=np.uint8)
    for step in range(tokens):
        of_sequences = decoding.logits_BV[:, first:last].tolist()
        try:
            bases = [sampling.choose(logits, of[step]) for logits, of in zip(of_sequences, uniforms, strict=True)]
        except ValueError:
            names = ", ".join(prompt.name for prompt in prompts)
            raise LocalError(
                f"model: its logits are not finite at base {step + 1:,} after the prompt (of {names}); take the weights of "
                "another checkpoint"
            ) from None
        chosen[step] = bases
        if step + 1 < tokens:
            decoding.step(torch.tensor(bases, device=decoding.logits_BV.device).add_(first))
        if (step + 1) % _REPORTED == 0 or step + 1 == tokens:
            progress(len(prompts) * (step % _REPORTED + 1))
    letters = np.frombuffer(BASES.encode(), dtype=np.uint8)
    for place, prompt in enumerate(prompts):
        yield prompt, letters[chosen[:, place]].tobytes().decode()
