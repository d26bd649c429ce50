"""Files that come with the package and are no code: launch scripts, configs, and the quick start's genome.

    repository: hyena_ds/shipped/NAME, a link to NAME at the root --package_data of setup.cfg--> wheel: a directory

They are found in the same way in a checkout and where the package was installed. No torch.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line


def shipped(name: str) -> Path:
    """Where `launch`, `configs` or `assets` are on this machine. Raises UserError when the installation lacks them."""
    path = Path(str(files("hyena_ds.shipped"))) / name
    if not path.is_dir():
        raise UserError(f"{path}: found no such directory; the installation is not whole, install hyena-ds again")
    return path.resolve()


def launch_script(name: str) -> Path:
    """Where a launch script is. Raises UserError when there is none of this name."""
    scripts = {path.name: path for path in shipped("launch").iterdir() if path.suffix in (".sh", ".sbatch")}
    if name not in scripts:
        wanted = ", ".join(sorted(scripts))
        raise UserError(f"found no launch script '{in_one_line(name, MOST_QUOTED)}', wanted one of {wanted}")
    return scripts[name]
