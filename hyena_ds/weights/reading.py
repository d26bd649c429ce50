"""A model's shape and parameters from a file of weights of any layout.

    file --safetensors, or torch's archive--> stored tensors --layouts--> published names --checks--> our names, float32

What is not in the weights is told by the file's header, by config.json beside it, or by the buffers that a file carries;
where they and the weights disagree, the weights are right. The filter's shift may be in none of them: it is then chosen by
the loss on a real sequence. Nothing is made on a header's word before the file is seen to have it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hyena_ds.config.limits import MOST_LAYERS
from hyena_ds.config.loading import Invalid
from hyena_ds.config.model import ModelConfig
from hyena_ds.errors import UserError
from hyena_ds.model.backbone import HyenaDNA
from hyena_ds.text import counted
from hyena_ds.weights.archive import OLD, ZIP, open_archive
from hyena_ds.weights.derived import check_derived
from hyena_ds.weights.folder import Told, read_told
from hyena_ds.weights.heads import PROMPT
from hyena_ds.weights.layouts import EMBEDDING, HEAD, Found, Stored, find_layout
from hyena_ds.weights.published import (
    DERIVED,
    FREQUENCY,
    FREQUENCY_ALIASES,
    config_from_header,
    has_shape,
    published_names,
)
from hyena_ds.weights.shift import choose_shift

_NUMBER = re.compile(r"blocks\.[0-9]+\.")
_LAYER = re.compile(r"backbone\.layers\.([0-9]{1,5})\.")
_DTYPES = ("F32", "F64", "F16", "BF16")
"""As safetensors calls them."""
_FIRST = "backbone.layers.0."
_SHAPE = {
    "width": (EMBEDDING, 1),
    "inner_width": (f"{_FIRST}mlp.fc1.weight", 0),
    "filter_features": (f"{_FIRST}mixer.filter_fn.implicit_filter.0.weight", 1),
    "filter_width": (f"{_FIRST}mixer.filter_fn.implicit_filter.0.weight", 0),
}
"""Fields of a model's config: the tensor that shows one, and which of its axes."""


@dataclass(frozen=True)
class Weights:
    """A model as a file has it."""

    path: Path
    layout: str
    """What kind of file it is."""
    config: ModelConfig
    parameters: dict[str, Tensor]
    """Our names, float32."""
    shift_from: str
    """Who says what `config.filter_shift` is."""
    keys: dict[str, tuple[str, tuple[int, ...]]]
    """The file's own keys: type and shape of each."""
    left_out: tuple[str, ...] = ()
    """Keys that are no part of the model."""
    notes: tuple[str, ...] = ()
    """What somebody who uses the weights has to know."""

    def model(self) -> HyenaDNA:
        """The model, without dropout."""
        model = HyenaDNA(self.config)
        model.load_state_dict(self.parameters)
        return model.eval()


@dataclass(frozen=True)
class SafeTensor:
    """A tensor of a safetensors file that is open."""

    file: Any
    key: str
    shape: tuple[int, ...] = field(init=False)
    dtype: str = field(init=False)

    def __post_init__(self) -> None:
        piece = self.file.get_slice(self.key)
        object.__setattr__(self, "shape", tuple(piece.get_shape()))
        object.__setattr__(self, "dtype", piece.get_dtype())

    def load(self) -> Tensor:
        """Read it."""
        tensor: Tensor = self.file.get_tensor(self.key)
        return tensor


def read_weights(path: str | Path, shift: float | None = None) -> Weights:
    """The model of a file: published key names (ours too), Lightning's, `-hf`, MultiMolecule's; safetensors or torch's zip.

    `shift` is the filter's, whatever the file says. Raises UserError when the file is unreadable, of no known layout, or a
    key is missing, unknown, of another shape, or not what it follows from.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file; name a weights.safetensors")
    try:
        with ExitStack() as open_files:
            header, tensors = _open(path, open_files)
            found = find_layout(path, tensors)
            told = Told() if has_shape(header) else read_told(path.parent / "config.json")
            config, shift_from = _config(found, header, told)
            parameters, notes = _parameters(found, config)
            keys = {key: (tensor.dtype, tensor.shape) for key, tensor in tensors.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); name a weights.safetensors") from None
    notes += told.disagreements(config)
    if shift is not None:
        config, shift_from = _shifted(path, config, shift), "given"
    elif shift_from is None:
        chosen = choose_shift(config, parameters)
        config, shift_from = replace(config, filter_shift=chosen.shift), str(chosen)
        notes.append(f"nothing says the filter's shift: took {chosen.shift:g}, {chosen}; `shift` overrides it")
    if PROMPT in tensors:
        notes.append(
            "it was trained to read sequences behind a soft prompt, which is left out: it reads them alone, as it did before the "
            "prompt was trained"
        )
    return Weights(path, found.layout.name, config, parameters, shift_from, keys, found.left_out, tuple(notes))


def _open(path: Path, open_files: ExitStack) -> tuple[Mapping[str, str], dict[str, Stored]]:
    """(header, tensors by the file's own keys), none of them read."""
    with path.open("rb") as raw:
        begin = raw.read(4)
    if begin == ZIP:
        return {}, dict(open_archive(path))
    if begin.startswith(OLD):
        raise UserError(
            f"{path}: found a bare pickle, wanted safetensors or an archive of torch.save; if you trust it, load it with "
            "torch and save it again"
        )
    file = open_files.enter_context(safe_open(path, framework="pt"))
    return file.metadata() or {}, {key: SafeTensor(file, key) for key in file.keys()}  # noqa: SIM118


def _shifted(path: Path, config: ModelConfig, shift: float) -> ModelConfig:
    try:
        return replace(config, filter_shift=shift)
    except Invalid as error:
        raise UserError(f"{path}: shift: {error.problem}") from None


def _config(found: Found, header: Mapping[str, str], told: Told) -> tuple[ModelConfig, str | None]:
    """(the model's shape, who says the shift). Raises UserError where it does not follow from what there is."""
    path = found.path
    if has_shape(header):
        config, shift = config_from_header(path, header)
        return config, "the file's header" if shift else None
    layers = [int(match[1]) for match in map(_LAYER.match, found.tensors) if match]
    shape: dict[str, int] = {}
    for name, (key, axis) in _SHAPE.items():
        if key not in found.tensors:
            raise UserError(f"{path}: the key '{found.called(key)}' is missing; wanted a HyenaDNA")
        if axis >= len(found.tensors[key].shape):
            raise UserError(f"{path}: '{found.called(key)}' has shape {found.tensors[key].shape}, wanted a matrix")
        shape[name] = found.tensors[key].shape[axis]
    buffers = (found.tensors.get(f"{_FIRST}mixer.filter_fn.pos_emb.{name}") for name in "zt")
    lengths = [buffer.shape[1] for buffer in buffers if buffer is not None and len(buffer.shape) == 3]
    maximum = lengths[0] if lengths else told.maximum_context
    if maximum is None:
        raise UserError(
            f"{path}: nothing says over how many tokens the filter is defined; put its config.json beside it (l_max, "
            "max_seq_len or max_position_embeddings)"
        )
    told.check(path)
    try:
        config = ModelConfig(
            width=shape["width"],
            layers=min(max(layers) + 1, MOST_LAYERS + 1),
            maximum_context=maximum,
            inner_width=shape["inner_width"],
            filter_width=shape["filter_width"],
            filter_features=shape["filter_features"],
            **told.extension,
        )
        config = config if told.shift is None else replace(config, filter_shift=told.shift)
    except Invalid as error:
        raise UserError(f"{path}: its shape is no HyenaDNA's ({error.field}: {error.problem})") from None
    return config, None if told.shift is None else "config.json"


def _parameters(found: Found, config: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """(parameters under our names, notes)."""
    path, wanted = found.path, published_names(config.layers)
    missing = [theirs for theirs in wanted.values() if theirs not in found.tensors]
    if missing:
        more = f" (and {counted(len(missing) - 1, 'other')})" if len(missing) > 1 else ""
        raise UserError(
            f"{path}: the key '{found.called(missing[0])}' is missing{more}; wanted a HyenaDNA of {config.layers} layers"
        )
    strangers = sorted(set(found.tensors) - set(wanted.values()) - {HEAD} - _beside(config.layers))
    if strangers:
        raise UserError(
            f"{path}: found the unknown key '{found.called(strangers[0])}'; wanted the published HyenaDNA key names"
        )
    one_block = _skeleton(replace(config, layers=1))  # the others are like it
    shapes = {name: tuple(parameter.shape) for name, parameter in one_block.named_parameters()}
    for ours, theirs in wanted.items():
        _check(found, theirs, shapes[_NUMBER.sub("blocks.0.", ours)])
    parameters = {ours: found.tensor(theirs) for ours, theirs in wanted.items()}
    for theirs in [name for name in wanted.values() if name.endswith(FREQUENCY)]:
        for alias in FREQUENCY_ALIASES:
            _check_same(found, theirs.removesuffix(FREQUENCY) + alias, theirs, "one frequency for all three sines")
    _check_same(found, HEAD, EMBEDDING, "a head that is the embedding")
    check_derived(found, config)
    notes = []
    if found.layout.rows is not None:
        notes.append("[BOS] and [RESERVED] share a row of the vocabulary, which MultiMolecule does not tell apart")
    return parameters, notes


def _beside(layers: int) -> set[str]:
    """Published names that follow from others."""
    names = (*FREQUENCY_ALIASES, *DERIVED)
    return {f"backbone.layers.{number}.{name}" for number in range(layers) for name in names}


def _skeleton(config: ModelConfig) -> HyenaDNA:
    with torch.device("meta"), _Unfilled():
        return HyenaDNA(config)


class _Unfilled(TorchFunctionMode):
    """New parameters have no values: where there is no memory either, torch draws them through its compiler, whose import
    takes more than a second."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        draws = getattr(function, "__module__", "") == nn.init.__name__
        return named["tensor"] if draws else function(*arguments, **named)


def _check(found: Found, name: str, shape: tuple[int, ...]) -> None:
    """Raise UserError unless a tensor has this shape, and numbers of a type that weights have."""
    tensor, called = found.tensors[name], found.called(name)
    if tensor.shape != shape:
        raise UserError(f"{found.path}: '{called}' has shape {tensor.shape}, wanted {shape}")
    if tensor.dtype not in _DTYPES:
        raise UserError(f"{found.path}: '{called}' has numbers of type {tensor.dtype}, wanted {' or '.join(_DTYPES)}")


def _check_same(found: Found, name: str, as_name: str, wanted: str) -> None:
    """Raise UserError where a tensor is there that should be another one, and is not."""
    if name not in found.tensors:
        return
    _check(found, name, found.tensors[as_name].shape)
    difference = float((found.tensor(name) - found.tensor(as_name)).abs().max())
    if difference != 0.0:
        raise UserError(
            f"{found.path}: '{found.called(name)}' differs from '{found.called(as_name)}' by up to {difference:.3g}, wanted "
            f"{wanted}; a model that was trained so cannot be represented"
        )
