"""The published code's step: HyenaDNAModel of a clone of HazyResearch/hyena-dna, with this trainer's first weights.

    DIR/standalone_hyenadna.py --imported as it is--> HyenaDNAModel --tied head by the embedding--> cross-entropy

The file imports torchvision and transformers for parts that a step does not use; where they are not installed, empty
stand-ins take their names in this process, and the benchmark says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyena_ds.bench.case import SEED, STANDALONE, Case
from hyena_ds.bench.side import WholeSide
from hyena_ds.errors import UserError
from hyena_ds.model.backbone import build_model
from hyena_ds.parallel.devices import Compute
from hyena_ds.weights.published import published_names

_EMBEDDING = "backbone.embeddings.word_embeddings.weight"
_VOCABULARY, _VOCABULARY_MULTIPLE = 12, 8


_UNUSED = type("Unused", (), {})
_STAND_INS: dict[str, tuple[str, dict[str, type]]] = {
    "transformers": ("tokenization_utils", {"AddedToken": _UNUSED, "PreTrainedTokenizer": _UNUSED}),
    "torchvision": ("ops", {"StochasticDepth": nn.Identity}),  # with probability 0, as here, it changes nothing
}
"""By package, a module of it and the names that are imported from there. The real transformers asks for torchvision: first."""


class PublishedSide(WholeSide):
    """One process with the whole sequence."""

    def __init__(self, compute: Compute, case: Case, reference: str):
        module, self.stood_in = load_standalone(reference)
        model = build_published(module, case)
        super().__init__(compute, case, model)
        self.embedding = embedding_of(model)

    def logits(self, ids_BL: Tensor) -> Tensor:
        """(B, L) -> (B, L, 16)."""
        return F.linear(self.model(ids_BL), self.embedding)

    def check(self) -> tuple[float, dict[str, Tensor]]:
        """Loss at the checked length, and its gradients under our names."""
        loss = self.passes(self.case.checked_length, 1, "float32")
        parameters = dict(self.model.named_parameters())
        gradients: dict[str, Tensor] = {}
        for ours, theirs in published_names(self.case.layers).items():
            gradient = parameters[theirs].grad
            assert gradient is not None, f"the published code left {theirs} without a gradient"
            gradients[ours] = gradient.clone()
        self.optimizer.zero_grad()
        return loss, gradients

    def prepare(self) -> dict[str, Any]:
        """What the row says of the side, with the packages that were stood in for."""
        note = f"{', '.join(self.stood_in)} not installed: empty stand-ins, which the step never calls"
        return {**super().prepare(), "notes": [f"published code: {note}"] if self.stood_in else []}


def embedding_of(model: nn.Module) -> Tensor:
    """The published model's embedding (V, D), which is its head too."""
    return dict(model.named_parameters())[_EMBEDDING]


def load_standalone(reference: str) -> tuple[types.ModuleType, list[str]]:
    """The clone's own module, and which packages have a stand-in. Raises UserError when it cannot be imported."""
    path = Path(reference) / STANDALONE
    stood_in = []
    for name, (inner, content) in _STAND_INS.items():
        if importlib.util.find_spec(name) is None:
            package, module = types.ModuleType(name), types.ModuleType(f"{name}.{inner}")
            vars(module).update(content)
            vars(package)[inner] = module
            sys.modules.update({name: package, module.__name__: module})
            stood_in.append(name)
        else:
            with contextlib.suppress(ImportError):  # the clone's own import says what is wrong
                importlib.import_module(f"{name}.{inner}")
    spec = importlib.util.spec_from_file_location("standalone_hyenadna", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["standalone_hyenadna"] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as problem:
        raise UserError(
            f"{path}: {problem}; install what the published code imports, or use its latest version"
        ) from None
    return module, stood_in


def build_published(module: types.ModuleType, case: Case) -> nn.Module:
    """The published model of the case's shape, with the weights that our model of the same seed begins with."""
    config = case.config
    layer = {
        "l_max": config.maximum_context,
        "order": 2,
        "filter_order": config.filter_width,
        "emb_dim": config.filter_features,
        "short_filter_order": 3,
        "modulate": True,
        "shift": config.filter_shift,
        "w": config.filter_frequency,
        "lr_pos_emb": 0.0,
    }
    model = module.HyenaDNAModel(
        d_model=config.width,
        n_layer=config.layers,
        d_inner=config.mlp_width,
        vocab_size=_VOCABULARY,
        layer=layer,
        pad_vocab_size_multiple=_VOCABULARY_MULTIPLE,
        resid_dropout=0.0,
        embed_dropout=0.0,
        use_head=False,
    )
    names = published_names(config.layers)
    theirs = dict(model.named_parameters())
    strangers = sorted(set(theirs) - set(names.values()))
    if strangers or len(theirs) != len(names):
        missing = sorted(set(names.values()) - set(theirs))
        raise UserError(
            f"--reference: the clone's model has other parameters ({', '.join((strangers + missing)[:3])}); wanted "
            "those of HazyResearch/hyena-dna's main branch"
        )
    with torch.no_grad():
        for name, parameter in build_model(config, SEED).named_parameters():
            theirs[names[name]].copy_(parameter)
    return model
