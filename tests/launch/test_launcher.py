"""How the ranks of this machine end: `hyena_ds.runtime.launcher` with ranks that need no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.paths import ROOT

LAUNCH = (
    "import sys; from hyena_ds.runtime import launcher; launcher._END_SECONDS = 2.0; "
    "sys.exit(launcher.launch(len(sys.argv) - 1, 1, 'tests.launch.ending_rank', sys.argv[1:]))"
)


def started(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize(
    ("endings", "code", "said"),
    [
        (("0", "0"), 0, []),
        (("0", "3"), 3, []),
        (("3", "words"), 3, ["last words"]),  # not its code: it came second
        (("kill", "asked"), 137, ["asked to end", "up"]),
        (("deaf", "words"), 5, ["last words", "up"]),
    ],
)
def test_the_first_failure_ends_all_ranks_and_gives_the_code(
    endings: tuple[str, ...], code: int, said: list[str]
) -> None:
    launcher = started("-c", LAUNCH, *endings)
    output, _ = launcher.communicate(timeout=60)  # until no rank holds the pipe
    assert (launcher.returncode, sorted(output.splitlines())) == (code, said)


def test_a_launcher_that_is_asked_to_end_asks_its_ranks() -> None:
    launcher = started("-m", "hyena_ds.runtime.launcher", "2", "1", "tests.launch.ending_rank", "asked", "asked")
    assert launcher.stdout is not None
    assert [launcher.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
    launcher.terminate()
    output, _ = launcher.communicate(timeout=60)
    assert (launcher.returncode, output) == (143, "asked to end\n" * 2)


def test_it_takes_neither_torch_nor_deepspeed() -> None:
    code = "import sys, hyena_ds.runtime.launcher; assert not {'torch', 'numpy', 'deepspeed'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
