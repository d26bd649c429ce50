"""A sweep as one Slurm job array: `--slurm` writes its script, a task of which is one run.

array.sbatch: the #SBATCH lines of launch/slurm.sbatch, --array; task N --> CONFIG key=value ... --> launch/slurm.sbatch

What comes from the sweep is quoted where a shell reads it; in comments and #SBATCH lines, which know no quotes that hold
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
arguments=$("${{PYTHON:-python}}" -m hyena_ds sweep {sweep} --arguments "$SLURM_ARRAY_TASK_ID")
eval "set -- $arguments"
# In this script's place, so that Slurm's warnings reach it.
exec bash {script} "$@"
"""


def write_array(sweep: Sweep, overrides: list[str]) -> str:
    """Write the script into the sweep's directory; the command that submits it. Raises UserError where a run holds a secret."""
    for run in sweep.runs:
        run.check_secrets()
    script = launch_script("slurm.sbatch")
    lines = script.read_text(encoding="utf-8").splitlines()
    taken = ("#SBATCH --array", "#SBATCH --job-name")
    options = [line for line in lines if line.startswith(_OPTION) and not line.startswith(taken)]
    options += [f"#SBATCH --job-name={_plain(sweep.config.name)}", f"#SBATCH --array=0-{len(sweep.runs) - 1}"]
    body = _BODY.format(sweep=shlex.join([_no_option(sweep.file), *overrides]), script=shlex.quote(str(script)))
    source = _plain(Path(sweep.file).name)
    head = f"#!/usr/bin/env bash\n# Written by hyena-ds sweep --slurm of {source}, with the options of launch/slurm.sbatch.\n"
    file = sweep.directory / "array.sbatch"
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
