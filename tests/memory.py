"""Peak memory of a process, counted from a moment of a test's choice.

`ru_maxrss` also counts what a process was before `exec`: a child that pytest starts inherits pytest's own peak.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PEAK_MIB = 'next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM:"))'
"""An expression for `python -c`: the peak of that process, in MiB."""


def peak_mib() -> float:
    """Most resident memory of this process since it began, or since `grows_less_than` was entered."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


@contextmanager
def grown() -> Iterator[Callable[[], float]]:
    """Tells, after the block, how many MiB more this process held at its highest moment than at its beginning.

    What the C library holds free goes back first: growing into it would not be seen.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins again at what is held now
    before = peak_mib()
    after: list[float] = []
    yield lambda: after[0] - before
    after.append(peak_mib())


@contextmanager
def grows_less_than(mib: float) -> Iterator[None]:
    """Fails if this process holds `mib` more at any moment of the block than at its beginning."""
    with grown() as growth:
        yield
    assert growth() < mib, f"found {growth():.0f} MiB more than at the beginning; wanted less than {mib:.0f}"
