"""The head of a fine-tuned model, beside the model in its weights.safetensors.

header: head = {kind, pool, classes[, mean, deviation]}; tensors head.hidden.*, head.output.* --read_head--> TaskHead
header: head = {kind, pool, classes, trees: trees.json}: boosted trees, which stand beside the weights and are no layers
header: in_context = {prompt, demonstrations_per_class, label_tokens, classes}; tensor head.prompt
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hyena_ds.errors import UserError
from hyena_ds.labelled.sets import KINDS
from hyena_ds.model.pooling import POOLS

HEAD = "head"
"""Key of a header that says what the outputs are, and beginning of the tensors' keys."""
PROMPT = f"{HEAD}.prompt"
"""Key of the embeddings before every sequence, (N, D)."""
IN_CONTEXT = "in_context"
"""Key of a header that says what stands around the sequences."""
TREES = "trees.json"
"""Beside the weights, where boosted trees read the states: XGBoost's own JSON."""
_OUTPUT, _HIDDEN = f"{HEAD}.output", f"{HEAD}.hidden"


@dataclass(frozen=True)
class TaskHead:
    """What a fine-tuned model predicts, and by which layers."""

    kind: str
    pool: str
    classes: tuple[str, ...]
    tensors: dict[str, Tensor]
    scale: tuple[Tensor, Tensor] | None = None
    """(mean, deviation) of each number of a regression: an output counts deviations from the mean."""

    @property
    def pooling(self) -> str:
        """As model/pooling.py calls it."""
        return POOLS[self.pool]

    @property
    def hidden(self) -> int | None:
        """Width of the hidden layer; None where there is none."""
        weight = self.tensors.get(f"{_HIDDEN}.weight")
        return None if weight is None else weight.shape[0]

    def in_label_units(self) -> dict[str, Tensor]:
        """The layers as `dense` and `score`; outputs of a regression are then in the unit of the labels."""
        found = {name.replace(_OUTPUT, "score").replace(_HIDDEN, "dense"): each for name, each in self.tensors.items()}
        if self.scale is not None:
            mean_K, deviation_K = (each.to(found["score.weight"].dtype) for each in self.scale)
            found["score.weight"] = found["score.weight"] * deviation_K.unsqueeze(1)
            found["score.bias"] = found["score.bias"] * deviation_K + mean_K
        return found


def head_header(
    kind: str,
    pool: str,
    classes: Sequence[str],
    scale: tuple[Sequence[float], Sequence[float]] | None = None,
    trees: str | None = None,
) -> dict[str, str]:
    """What the header of weights says of a head; `trees` is the file of boosted trees, which it may be."""
    said: dict[str, Any] = {"kind": kind, "pool": pool, "classes": list(classes)}
    if scale is not None:
        said |= {"mean": list(scale[0]), "deviation": list(scale[1])}
    if trees is not None:
        said["trees"] = trees
    return {HEAD: json.dumps(said)}


def prompt_header(prompt: int, demonstrations: int, label_tokens: str, classes: Sequence[str]) -> dict[str, str]:
    """What the header of weights says of what stands around the sequences; `label_tokens` are letters, one a class, or none."""
    said = {"prompt": prompt, "demonstrations_per_class": demonstrations, "label_tokens": label_tokens}
    return {IN_CONTEXT: json.dumps({**said, "classes": list(classes)})}


def read_head(path: Path) -> TaskHead | None:
    """The head in a file of weights; None where there is none.

    Raises UserError where it is not whole, is boosted trees, or reads behind a prompt, without which it is worth nothing.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEAD)
            prompted = PROMPT in file.keys()  # noqa: SIM118
            tensors = {key: file.get_tensor(key) for key in file.keys() if key.startswith(f"{HEAD}.")}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None  # of another layout, which has no head of ours
    if prompted:
        raise UserError(
            f"{path}: found a model that reads sequences behind a soft prompt, wanted one that reads them alone: no other program "
            "has a place for the prompt; summary.json of its run says what it is worth"
        )
    if text is None:
        return None
    try:
        said = json.loads(text)
        if "trees" in said:
            raise UserError(
                f"{path}: found boosted trees on the model's states, wanted a head of layers: no other program's model has a place "
                f"for trees; XGBoost opens {TREES} beside it, and `hyena-ds embed` gives the states that they read"
            )
        kind, pool, classes = str(said["kind"]), str(said["pool"]), tuple(map(str, said["classes"]))
        scale = None
        if kind == "regression":
            mean, deviation = (
                torch.tensor([*map(float, said[name])], dtype=torch.float64) for name in ("mean", "deviation")
            )
            scale = mean, deviation
        outputs = len(classes)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        width = shapes[f"{_OUTPUT}.weight"][1]
        fits = shapes[f"{_OUTPUT}.weight"] == (outputs, width) and shapes[f"{_OUTPUT}.bias"] == (outputs,)
        if not (
            fits and kind in KINDS and pool in POOLS and (scale is None or len(scale[0]) == len(scale[1]) == outputs)
        ):
            raise ValueError
        return TaskHead(kind, pool, classes, tensors, scale)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise UserError(
            f"{path}: found a header whose '{HEAD}' does not describe the tensors {_OUTPUT}.*, wanted a head of hyena-ds "
            "finetune; export the run again, or take the weights of another checkpoint"
        ) from None
