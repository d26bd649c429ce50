"""Peak memory of a process, counted from a moment of a test's choice.

`ru_maxrss` also counts what a process was before `exec`: a child that pytest starts inherits pytest's own peak.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PEAK_MIB = 'next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM:"))'
"""An expression for `python -c`: the peak of that process, in MiB."""


def peak_mib() -> float:
    """Most resident memory of this process since it began, or since `grows_less_than` was entered."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


@contextmanager
def grows_less_than(mib: float) -> Iterator[None]:
    """Fails if this process holds `mib` more at any moment of the block than at its beginning."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins again at what is held now
    before = peak_mib()
    yield
    grown = peak_mib() - before
    assert grown < mib, f"found {grown:.0f} MiB more than at the beginning; wanted less than {mib:.0f}"
