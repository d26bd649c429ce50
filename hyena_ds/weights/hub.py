"""Fetches published weights from the Hugging Face hub. Nothing that is fetched is run.

NAME --names--> repository, revision --huggingface_hub--> config.json, model.safetensors, aside --SHA-256--> DIR
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from hyena_ds.data.shards import sha256_of
from hyena_ds.errors import MOST_QUOTED, UserError, in_one_line
from hyena_ds.files.whole import aside
from hyena_ds.weights.names import PUBLISHED

FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class Fetched:
    """What came, and from where."""

    directory: Path
    repository: str
    revision: str
    sha256: str
    known: bool
    """Whether the SHA-256 was compared with one that was known before."""


def download(name: str, revision: str | None = None, directory: Path | None = None) -> Fetched:
    """Fetch a published model into a new directory (default: hyenadna-NAME).

    Raises UserError where the name is unknown, huggingface_hub is not installed, the directory is there already, the hub
    does not answer, has not got it, or gives other bytes than are known of this revision.
    """
    if name not in PUBLISHED:
        shown = in_one_line(name, MOST_QUOTED)
        raise UserError(f"found no published model '{shown}', wanted one of {', '.join(PUBLISHED)}")
    model, directory = PUBLISHED[name], directory or Path(f"hyenadna-{name}")
    if directory.exists():
        raise UserError(f"{directory}: is there already; remove it, or name another directory with --output")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise UserError("huggingface_hub is not installed; pip install 'hyena-ds[huggingface]' installs it") from None
    wanted = revision or model.revision or "main"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with aside(directory) as partial:
        try:
            for file in FILES:
                hf_hub_download(model.repository, file, revision=wanted, cache_dir=partial / "hub")
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            problem = in_one_line(str(error), MOST_QUOTED)
            raise UserError(
                f"{model.repository}: cannot be fetched at revision {in_one_line(wanted, MOST_QUOTED)} ({problem}); look at "
                "the network, HF_ENDPOINT and the revision"
            ) from None
        found = _lay_out(partial)
        sha256 = sha256_of(partial / FILES[-1])
        known = model.sha256 if wanted == model.revision else None
        if known not in (None, sha256):
            raise UserError(
                f"{model.repository}: {FILES[-1]} has the SHA-256 {sha256}, wanted {known} for revision {wanted}; the hub gave "
                "other bytes: fetch it again, and do not use them"
            )
    return Fetched(directory, model.repository, found, sha256, known is not None)


def _lay_out(partial: Path) -> str:
    """Move the files out of the hub's cache, drop the cache, and return the commit that they are of."""
    snapshot = next((partial / "hub").glob("*/snapshots/*"))
    for file in FILES:
        shutil.copyfile(snapshot / file, partial / file)
    shutil.rmtree(partial / "hub")
    return snapshot.name
