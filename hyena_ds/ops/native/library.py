"""The C functions of tiles.c, compiled once by this machine's compiler into the user's cache.

    tiles.c, flags, compiler, processor --SHA-256--> ~/.cache/hyena-ds/native-HASH.so     (absent: cc, aside, then renamed)

There is no lock: processes that find no library at once each compile one, and the last to rename wins.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hyena_ds.config.remote import user_cache
from hyena_ds.files.whole import aside, to_disk
from hyena_ds.ops.start_check import Unusable

_HERE = Path(__file__).parent
_SOURCES = ("tiles.c", "rows.h")
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = (
    "-std=gnu11", "-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
    "-shared", "-fPIC",
)  # fmt: skip
_WIDE = "-mprefer-vector-width=512"
"""For x86 compilers, which else use half of a register of AVX-512."""
_SECONDS = 120.0
_CURE = "install gcc or clang"


@lru_cache
def library() -> ctypes.CDLL:
    """The functions. Raises Unusable where they cannot be compiled here."""
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise Unusable("no C compiler (cc, gcc or clang)", _CURE)
    command = [compiler, *_FLAGS, *([_WIDE] if platform.machine() in ("x86_64", "AMD64") else [])]
    name = f"native-{_fingerprint(command)}.so"
    try:
        directory = user_cache()
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / name
        if not path.exists():
            _compile(command, path)
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # cut short by a full disk, say
            _compile(command, path)
            return ctypes.CDLL(str(path))
    except OSError:  # no home, or nothing can be written or run there
        return _without_cache(command, name)


def _without_cache(command: list[str], name: str) -> ctypes.CDLL:
    try:
        with TemporaryDirectory() as directory:
            _compile(command, Path(directory) / name)
            return ctypes.CDLL(str(Path(directory) / name))
    except OSError as error:
        raise Unusable(f"nowhere to compile to ({error})", "set XDG_CACHE_HOME to a directory of yours") from error


def _compile(command: list[str], path: Path) -> None:
    with aside(path, own=True) as partial:
        whole = [*command, str(_HERE / _SOURCES[0]), "-o", str(partial), "-lm"]
        try:
            done = subprocess.run(whole, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Unusable(f"a compiler, {command[0]}, that took more than {_SECONDS:.0f} s", _CURE) from error
        if done.returncode or not partial.exists():
            said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
            raise Unusable(f"a compiler, {command[0]}, that fails ({said[0]})", _CURE)
        with partial.open("rb") as file:  # half a library would end the process that loads it
            to_disk(file)


def _fingerprint(command: list[str]) -> str:
    """A digest of everything that the library depends on."""
    found = hashlib.sha256()
    for source in _SOURCES:
        found.update((_HERE / source).read_bytes())
    compiler = Path(command[0]).resolve()
    at = compiler.stat()
    found.update(repr((command, str(compiler), at.st_size, at.st_mtime_ns, platform.machine(), _processor())).encode())
    return found.hexdigest()[:16]


def _processor() -> str:
    """What code for this processor may use, where the system says it; a cache may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() + os.uname().release
    return "\n".join(
        line for line in lines if line.split(":")[0].strip().lower() in ("model name", "flags", "features")
    )
