"""What a launched rank finds: `python -m tests.launch.rank_settings DIRECTORY` writes it there, a file a rank."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

from hyena_ds.runtime.local_ranks import bind_cores


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo."""

    _fields_ = (("before", ctypes.c_int * 4), ("hblkhd", ctypes.c_int), ("after", ctypes.c_int * 5))


def mapped_bytes_of_a_large_block() -> int:
    """Bytes that malloc takes from the kernel alone for 12 MiB, and would give back at once when they are freed."""
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.mallinfo.restype = _MallocInfo
    before = library.mallinfo().hblkhd
    library.malloc(ctypes.c_size_t(12 * 2**20))
    return library.mallinfo().hblkhd - before


if __name__ == "__main__":
    bind_cores()
    seen = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES"),
        "mapped": mapped_bytes_of_a_large_block(),
        "cores": sorted(os.sched_getaffinity(0)),
    }
    (Path(sys.argv[-1]) / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
