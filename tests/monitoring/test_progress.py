"""The progress line: right in a terminal, plain in a log file."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios

from tests.paths import ROOT

COLUMNS = 72
PROGRAM = """
from hyena_ds.monitoring import progress
progress.PLAIN_SECONDS = 0.0
bar = progress.Progress(40, 40_000_000, 10, 10_000_000)
bar._bar.mininterval = 0.0
for step in range(11, 41):
    line = bar.advance(progress.Reached(step, 1_000_000 * step, 1, 131_072, 1.25))
    if step == 30:
        bar.say("a line of its own")
    if not bar.has_bar and line:
        bar.say(line)
bar.close()
print("the end")
"""


def _screen(output: str) -> list[str]:
    """What a terminal shows in the end: a carriage return goes to the line's begin, and text overwrites what was there."""
    lines: list[list[str]] = [[]]
    column = 0
    for letter in output.replace("\r\n", "\n"):
        if letter == "\n":
            lines.append([])
            column = 0
        elif letter == "\r":
            column = 0
        else:
            assert letter.isprintable(), f"the control character {letter!r}"
            lines[-1][column : column + 1] = [letter]
            column += 1
            assert column <= COLUMNS, "a line as wide as the terminal would break"
    return ["".join(line).rstrip() for line in lines]


def test_in_a_terminal_a_bar_stays_on_one_line_below_what_is_said_and_goes_away_at_the_end() -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        output = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            output += part
        assert process.wait(60) == 0, output
    os.close(ours)
    text = output.decode()
    assert "step 29/40, context 131,072, loss 1.2500 |" in text
    assert " 50 % [" in text, "20 of 40 steps: what was done before the start counts"
    assert [line for line in _screen(text) if line] == ["a line of its own", "the end"]


def test_in_a_log_file_there_are_only_plain_lines_with_the_time_left() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 32 and not any(letter in done.stdout for letter in "\r\x1b|")
    assert lines[0].startswith("step 11 of 40 (stage 1, context 131,072): loss 1.2500, ")
    assert lines[0].endswith(" left") and " tokens/s, about " in lines[0]
