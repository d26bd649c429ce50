"""Tensors as the bytes of a safetensors file, in chunks.

    8 bytes: length of the header --> JSON header {name: {dtype, shape, data_offsets}} --> the tensors' bytes

The library's own writer wants the whole file in memory and keeps other threads waiting; this one streams, so that a
training process can write in the background. Any safetensors reader opens the result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

_CHUNK = 8 << 20


def safetensors_chunks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The file of these float32 tensors, on any device; none but the one that is read is copied."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}"
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        for at in range(0, len(flat), _CHUNK):
            yield flat[at : at + _CHUNK]
