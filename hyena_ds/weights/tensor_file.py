"""Tensors as the bytes of a safetensors file, in chunks.

    8 bytes: length of the header --> JSON header {name: {dtype, shape, data_offsets}} --> the tensors' bytes

The library's own writer wants the whole file in memory and keeps other threads waiting; this one streams, so that a
training process can write in the background. Any safetensors reader opens the result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

_CHUNK = 8 << 20


def safetensors_chunks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The file of these float32 tensors, on any device; none but the one that is read is copied."""
    yield header({name: tensor.shape for name, tensor in tensors.items()}, metadata)
    yield from data(tensors.values())


def header(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]) -> bytes:
    """What a file of float32 tensors of these shapes begins with; their bytes follow in the same order."""
    content: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        content[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def data(tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    """The bytes of float32 tensors, one after the other."""
    for tensor in tensors:
        assert tensor.dtype == torch.float32, f"found {tensor.dtype}"
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        for at in range(0, len(flat), _CHUNK):
            yield flat[at : at + _CHUNK]
