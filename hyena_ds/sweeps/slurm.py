"""A sweep, or another list of runs, as one Slurm job array: `--slurm` writes its script, a task of which is one run.

array.sbatch: the #SBATCH lines of launch/slurm.sbatch, --array; task N --> CONFIG key=value ... --> launch/slurm.sbatch

What comes from a user is quoted where a shell reads it; in comments and #SBATCH lines, which know no quotes that hold
everywhere, other characters than A-Z a-z 0-9 . _ - become underscores.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hyena_ds.shipped import launch_script
from hyena_ds.sweeps.plan import Sweep

_OPTION = "#SBATCH "
_BODY = """set -euo pipefail
arguments=$("${{PYTHON:-python}}" -m hyena_ds {command} --arguments "$SLURM_ARRAY_TASK_ID")
eval "set -- $arguments"
# In this script's place, so that Slurm's warnings reach it.
exec bash {script} "$@"
"""


def write_array(sweep: Sweep, overrides: list[str]) -> str:
    """Write the script into the sweep's directory; the command that submits it. Raises UserError where a run holds a secret."""
    for run in sweep.runs:
        run.check_secrets()
    return write_script("sweep", [sweep.file, *overrides], sweep.config.name, sweep.directory, len(sweep.runs))


def write_script(command: str, words: list[str], name: str, directory: Path, count: int) -> str:
    """Write the script of an array of `count` tasks into `directory`; the command that submits it.

    Task N asks `hyena-ds COMMAND WORDS --arguments N` for the config and the overrides of its run; the first word is a file.
    """
    script = launch_script("slurm.sbatch")
    lines = script.read_text(encoding="utf-8").splitlines()
    taken = ("#SBATCH --array", "#SBATCH --job-name")
    options = [line for line in lines if line.startswith(_OPTION) and not line.startswith(taken)]
    options += [f"#SBATCH --job-name={_plain(name)}", f"#SBATCH --array=0-{count - 1}"]
    asked = shlex.join([command, _no_option(words[0]), *words[1:]])
    body = _BODY.format(command=asked, script=shlex.quote(str(script)))
    source = _plain(Path(words[0]).name)
    head = f"#!/usr/bin/env bash\n# Written by hyena-ds {command} --slurm of {source}, with the options of launch/slurm.sbatch.\n"
    file = directory / "array.sbatch"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = head + "\n".join(options) + "\n" + body
    file.write_bytes(
        text.encode("utf-8", "surrogateescape")
    )  # names of files as they are, also those that are not UTF-8
    return shlex.join(["sbatch", _no_option(str(file))])


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)


def _no_option(path: str) -> str:
    """A path that no command takes for an option."""
    return f"./{path}" if path.startswith("-") else path
