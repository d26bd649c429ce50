"""Files as others write them, from the recorded tensors of the published code: true key names, true ways of storing them."""

from __future__ import annotations

import json
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.model.golden import weights_path
from tests.weights.test_weights_file import taken_apart

EMBEDDING = "backbone.embeddings.word_embeddings.weight"
# Row of MultiMolecule's vocabulary (pad cls eos unk mask null A C G T N) for each of CLS SEP BOS MASK PAD RESERVED UNK A C G T N
TO_MULTIMOLECULE = {0: 1, 1: 2, 3: 4, 4: 0, 5: 5, 6: 3, 7: 6, 8: 7, 9: 8, 10: 9, 11: 10, 12: 12, 13: 13, 14: 14, 15: 15}


def header(case: str) -> dict[str, int]:
    """d_model, n_layer, d_inner, l_max."""
    said = taken_apart(Path(weights_path(case)))[0]["__metadata__"]
    return {key: int(said[key]) for key in ("d_model", "n_layer", "d_inner", "l_max")}


def golden(case: str) -> dict[str, Tensor]:
    """The tensors of the published code's state dict, buffers and frequency aliases included."""
    return load_file(weights_path(case))


def module_of(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    for key, value in content.items():
        if isinstance(value, type):
            value.__module__, value.__qualname__ = name, key
        setattr(module, key, value)
    return module


@contextmanager
def stub_modules(*modules: types.ModuleType) -> Iterator[None]:
    """Modules that a pickle names while it is written; gone when it is read."""
    before = {module.__name__: sys.modules.get(module.__name__) for module in modules}
    sys.modules.update({module.__name__: module for module in modules})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def stub_class(**state: Any) -> type:
    return type("Stub", (), {"__init__": lambda self, **given: self.__dict__.update(given)})


def save_lightning(file: Path, state: Mapping[str, Tensor]) -> None:
    """A checkpoint of Lightning 1.8 with OmegaConf's containers among its hyperparameters, and Adam's moments."""
    config, many, node, meta, plain = (stub_class() for _ in range(5))
    callback = stub_class()
    attributes = type("AttributeDict", (dict,), {})
    modules = (
        module_of("omegaconf", __path__=[]),
        module_of("omegaconf.dictconfig", DictConfig=config),
        module_of("omegaconf.listconfig", ListConfig=many),
        module_of("omegaconf.nodes", AnyNode=node),
        module_of("omegaconf.base", ContainerMetadata=meta, Metadata=plain),
        module_of("pytorch_lightning", __path__=[]),
        module_of("pytorch_lightning.utilities", __path__=[]),
        module_of("pytorch_lightning.utilities.parsing", AttributeDict=attributes),
        module_of("pytorch_lightning.callbacks", __path__=[]),
        module_of("pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint=callback),
    )
    with stub_modules(*modules):
        about = meta(ref_type=Any, object_type=dict, optional=True, key_type=int, element_type=list, flags={}, key=None)
        value = node(_metadata=plain(ref_type=Any, optional=True, key="l_max"), _parent=None, _val=1026)
        layers = many(_metadata=about, _parent=None, _content=[value, value])
        hyper = attributes(model=config(_metadata=about, _parent=None, _content={"l_max": value, "list": layers}))
        moments = {number: {"step": 3, "exp_avg": tensor * 0.5} for number, tensor in enumerate(state.values())}
        checkpoint = {
            "epoch": 1,
            "global_step": 10_000,
            "pytorch-lightning_version": "1.8.6",
            "state_dict": OrderedDict(state),
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
            "callbacks": {callback: {"best_model_score": torch.tensor(2.9), "best_model_path": "/home/x.ckpt"}},
            "optimizer_states": [{"state": moments, "param_groups": [{"lr": 6e-4, "betas": (0.9, 0.999)}]}],
            "lr_schedulers": [{"base_values": [6e-4], "last": None, "big": 2**60}],
            "hyper_parameters": hyper,
        }
        torch.save(checkpoint, file)


def shared_frequencies(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The aliases as one tensor, as the published module has them."""
    return {key: state[key.replace(".3.freq", ".1.freq").replace(".5.freq", ".1.freq")] for key in state}


def published_config(case: str, **more: Any) -> dict[str, Any]:
    sizes = header(case)
    layer = {"_name_": "hyena", "emb_dim": 5, "filter_order": 64, "local_order": 3, "l_max": sizes.pop("l_max")}
    layer |= {"modulate": True, "w": 10, "lr": 6e-4, "wd": 0.0, "lr_pos_emb": 0.0}
    return {**sizes, "vocab_size": 12, "residual_in_fp32": True, "pad_vocab_size_multiple": 8, "layer": layer, **more}


def wrapped(key: str) -> str:
    """The key that activation checkpointing leaves."""
    return key.replace(".mixer.", ".mixer.layer.").replace(".mlp.", ".mlp.layer.")


def lightning_folder(directory: Path, case: str, wrap: bool = False) -> Path:
    """config.json and weights.ckpt, as LongSafari/hyenadna-*-seqlen."""
    state = {
        f"model.{wrapped(key) if wrap else key}": tensor for key, tensor in shared_frequencies(golden(case)).items()
    }
    state["model.lm_head.weight"] = state[f"model.{EMBEDDING}"]
    state["train_torchmetrics.total"] = torch.tensor(0.0)
    (directory / "config.json").write_text(json.dumps(published_config(case, checkpoint_mixer=wrap)))
    save_lightning(directory / "weights.ckpt", state)
    return directory


def bare_checkpoint(directory: Path, case: str) -> Path:
    """weights.ckpt without a config.json."""
    lightning_folder(directory, case)
    (directory / "config.json").unlink()
    return directory / "weights.ckpt"


def hf_state(case: str) -> dict[str, Tensor]:
    state = {f"hyena.{key}": tensor for key, tensor in golden(case).items()}
    state["lm_head.weight"] = state[f"hyena.{EMBEDDING}"].clone()
    return state


def hf_config(directory: Path, case: str) -> None:
    sizes = header(case)
    sizes["max_seq_len"] = sizes.pop("l_max")
    config = {**sizes, "model_type": "hyenadna", "emb_dim": 5, "filter_order": 64, "hyena_order": 2, "use_bias": True}
    config |= {"num_inner_mlps": 2, "short_filter_order": 3, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False}
    (directory / "config.json").write_text(json.dumps(config))


def hf_safetensors(directory: Path, case: str) -> Path:
    """model.safetensors, whose writer keeps one of the frequency's three names."""
    state = {key: t for key, t in hf_state(case).items() if not key.endswith((".3.freq", ".5.freq"))}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    hf_config(directory, case)
    return directory


def hf_bin(directory: Path, case: str) -> Path:
    torch.save(OrderedDict(hf_state(case)), directory / "pytorch_model.bin")
    hf_config(directory, case)
    return directory


def multimolecule_state(case: str, prefix: str = "model.") -> dict[str, Tensor]:
    renamed = {
        "backbone.embeddings.": "embeddings.",
        "backbone.layers.": "layers.",
        "backbone.ln_f.": "final_layer_norm.",
    }
    state = {}
    for key, tensor in golden(case).items():
        if key.endswith(("pos_emb.z", "pos_emb.t", "modulation.deltas")):
            continue
        ours, theirs = next((a, b) for a, b in renamed.items() if key.startswith(a))
        if key == EMBEDDING:
            rows = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3))
            for our_row, their_row in TO_MULTIMOLECULE.items():
                rows[their_row] = tensor[our_row]
            tensor = rows
        state[prefix + theirs + key.removeprefix(ours)] = tensor
    return state


def multimolecule(directory: Path, case: str) -> Path:
    state = multimolecule_state(case)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    sizes = header(case)
    config = {"model_type": "hyenadna", "hidden_size": sizes["d_model"], "num_hidden_layers": sizes["n_layer"]}
    config |= {"intermediate_size": sizes["d_inner"], "max_position_embeddings": sizes["l_max"], "vocab_size": 11}
    (directory / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5, "hyena_order": 2}))
    return directory


def multimolecule_backbone(directory: Path, case: str) -> Path:
    multimolecule(directory, case)
    state = multimolecule_state(case, prefix="")
    width = header(case)["d_model"]
    state |= {"pooler.dense.weight": torch.zeros(width, width), "pooler.dense.bias": torch.zeros(width)}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def no_prefix(directory: Path, case: str) -> Path:
    """The state dict of the published module alone."""
    torch.save(shared_frequencies(golden(case)), directory / "backbone.pt")
    return directory / "backbone.pt"


def no_header(directory: Path, case: str) -> Path:
    save_file(golden(case), directory / "weights.safetensors")
    return directory


LAYOUTS: dict[str, tuple[Callable[[Path, str], Path], str]] = {
    "lightning": (lightning_folder, "Lightning checkpoint of the published code"),
    "lightning, wrapped": (
        lambda directory, case: lightning_folder(directory, case, wrap=True),
        "Lightning checkpoint of the published code",
    ),
    "bare checkpoint": (bare_checkpoint, "Lightning checkpoint of the published code"),
    "hf safetensors": (hf_safetensors, "Hugging Face (-hf)"),
    "hf bin": (hf_bin, "Hugging Face (-hf)"),
    "multimolecule": (multimolecule, "MultiMolecule"),
    "multimolecule, backbone": (multimolecule_backbone, "MultiMolecule, backbone only"),
    "no prefix": (no_prefix, "published key names"),
    "no header": (no_header, "published key names"),
}
