"""What a pickle of weights may name, and what its tensors are before anybody reads their numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

MOST_AXES = 8


class Refused(ValueError):
    """What is wrong with a pickle."""


class Name(NamedTuple):
    """A module and what it would have been asked for."""

    module: str
    name: str


class Storage(NamedTuple):
    """Numbers in a file of the archive."""

    kind: str
    """As torch calls it: FloatStorage."""
    key: str
    numbers: int


class StoredTensor(NamedTuple):
    """A tensor's place in a storage. Its numbers were not looked at: they may be anything."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Inert:
    """An object of somebody's class, of which nothing was made."""

    __slots__ = ()


DICTS = {
    Name("collections", "OrderedDict"),
    Name("collections", "defaultdict"),
    Name("pytorch_lightning.utilities.parsing", "AttributeDict"),
    Name("lightning_fabric.utilities.data", "AttributeDict"),
}
TENSOR, PARAMETER = Name("torch._utils", "_rebuild_tensor_v2"), Name("torch._utils", "_rebuild_parameter")
_STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
_DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
_INERT = {
    "builtins": ("dict", "list", "tuple", "set", "frozenset", "int", "float", "bool", "str", "bytes", "complex"),
    "__builtin__": ("dict", "list", "tuple", "set", "int", "long", "float", "bool", "str", "unicode"),
    "typing": ("Any", "Union", "Optional", "Dict", "List"),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.nodes": ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "EnumNode"),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "torch": ("Size", "device", *_DTYPES, *(f"{kind}Storage" for kind in _STORAGES)),
    "pathlib": ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"),
    "numpy": ("dtype",),
    "numpy.core.multiarray": ("scalar",),
    "numpy._core.multiarray": ("scalar",),
    "_codecs": ("encode",),
    **{
        f"{package}.callbacks.{module}": (name,)
        for package in ("pytorch_lightning", "lightning.pytorch")
        for module, name in (("model_checkpoint", "ModelCheckpoint"), ("early_stopping", "EarlyStopping"))
    },
}
KNOWN = {Name(module, name) for module, names in _INERT.items() for name in names} | DICTS | {TENSOR, PARAMETER}


def is_size(value: Any) -> bool:
    """Whether it is a whole number that can be a size or a place."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def stored_tensor(storage: Any = None, offset: Any = None, shape: Any = None, stride: Any = None) -> StoredTensor:
    """A tensor that lies within its storage. Raises Refused where it does not."""
    sizes = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= MOST_AXES
    if not (isinstance(storage, Storage) and sizes and all(map(is_size, (offset, *shape, *stride)))):
        raise Refused("describes a tensor that cannot be")
    count = 1
    for size in shape:
        count *= size
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if count > storage.numbers or (count and last >= storage.numbers) or offset > storage.numbers:
        raise Refused(f"has a tensor of {count:,} numbers beyond the {storage.numbers:,} of its storage")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))
