"""One tier of a run's checkpoints: a directory or a bucket that holds copies of them. Takes no torch.

PLACE/NAME/step-00000100/FILE            as in the run's own directory
PLACE/NAME/step-00000100/parts/00003     what one node has brought, while the copy is under way
PLACE/NAME/step-00000100/manifest.json   the last: without it there is no checkpoint
PLACE/NAME/metrics.jsonl, selected       the rows until then, and which checkpoint's weights are the run's

The objects are obstore's, which sends large files in parts and sends a part again when its connection breaks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from hyena_ds.checkpoints.directory import name_of
from hyena_ds.checkpoints.manifest import MANIFEST, STEP_NAME
from hyena_ds.config.checkpoint import TierConfig
from hyena_ds.errors import UserError, in_one_line, need
from hyena_ds.files.whole import to_disk

T = TypeVar("T")

ABANDONED = "abandoned-manifest.json"
"""Takes the manifest's place where a run has left a later step behind."""
_PART_BYTES, _MOST_PARTS, _PARTS_AT_ONCE = 8 << 20, 9_000, 4
_QUICK_RETRIES = 3
"""Times that obstore repeats a request, within about a second; then come the pauses."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds."""
_MOST_CAUSE = 200
"""Characters of what a library says."""


class GivenUp(Exception):
    """Patience has ended; the text says what with."""


class TierStore:
    """The copies of the checkpoints of the run `run` in one tier. Its methods raise OSError or obstore's errors."""

    def __init__(self, tier: TierConfig, run: str):
        self.tier, self._run = tier, run

    def __str__(self) -> str:
        return f"{self.tier.place.rstrip('/')}/{self._run}"

    def check_packages(self) -> None:
        """Raise UserError where a library is missing that copies need."""
        for package in ("obstore",) if self.tier.directory is not None else ("obstore", "boto3"):
            try:
                need(package, "tiers")
            except UserError as error:
                raise UserError(
                    f"checkpoint.tiers: {error}, or take {self.tier.place} out of checkpoint.tiers"
                ) from None

    def steps(self) -> dict[int, bool]:
        """The steps that something is there of, and whether their manifests are."""
        found = {}
        for prefix in self._list("")["common_prefixes"]:
            name = STEP_NAME.fullmatch(Path(prefix).name)
            if name:
                found[int(name[1])] = MANIFEST in self.files(int(name[1]))
        return found

    def files(self, step: int) -> dict[str, int]:
        """Name and size in bytes of every file of a step."""
        return {Path(each["path"]).name: each["size"] for each in self._list(name_of(step))["objects"]}

    def put(self, path: Path, name: str) -> None:
        """Send a file."""
        part = max(_PART_BYTES, -(-path.stat().st_size // _MOST_PARTS))
        self._obstore.put(self._store, name, path, chunk_size=part, max_concurrency=_PARTS_AT_ONCE)

    def write(self, name: str, content: bytes) -> None:
        """Send a few bytes."""
        self._obstore.put(self._store, name, content)

    def read(self, name: str, most: int) -> bytes | None:
        """The content of a small file; None where there is none, or one of more than `most` bytes."""
        try:
            found = self._obstore.get(self._store, name)
            return bytes(found.bytes()) if found.meta["size"] <= most else None
        except FileNotFoundError:
            return None

    def append(self, name: str, path: Path, size: int) -> None:
        """Bring what `path` lacks of the `size` bytes of a file, from where the last attempt ended, to the disk.

        Raises UserError where the file is missing, or longer.
        """
        with path.open("ab") as file:
            begin = file.tell()
            if begin < size:
                rest = {"range": (begin, size)} if begin else None
                try:
                    answer = self._obstore.get(self._store, name, options=rest)
                except FileNotFoundError:
                    raise UserError(f"{self}/{name}: missing") from None
                for block in answer.stream():
                    file.write(block)
                    if file.tell() > size:
                        raise UserError(f"{self}/{name}: found more than {size} bytes, wanted {size}")
            to_disk(file)

    def remove(self, step: int) -> None:
        """Remove a step, its manifest first: what is left when this is cut short is no checkpoint."""
        self.remove_file(f"{name_of(step)}/{MANIFEST}")
        rest = [each["path"] for block in self._obstore.list(self._store, name_of(step)) for each in block]
        if rest:
            self._obstore.delete(self._store, rest)

    def remove_file(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            self._obstore.delete(self._store, [name])

    def set_aside_after(self, last: int) -> list[str]:
        """Make later steps no checkpoints any more, and keep what they hold; a line for each."""
        later = [step for step, is_whole in self.steps().items() if step > last and is_whole]
        for step in later:
            name = name_of(step)
            self._obstore.rename(self._store, f"{name}/{MANIFEST}", f"{name}/{ABANDONED}")
        return [f"{self}: step {step} is later, set aside; remove it when you no longer want it" for step in later]

    def patiently(self, work: Callable[[], T], what: str, tell: Callable[[str], object]) -> T:
        """Do `work` until it raises no error, with pauses that grow; raises GivenUp after the tier's patience.

        It is tried twice at least. `tell` is given the first error.
        """
        since, pause, told = time.monotonic(), _FIRST_PAUSE, False
        while True:
            try:
                return work()
            except (OSError, ValueError, self._obstore.exceptions.BaseError) as error:
                cause = in_one_line(str(error).partition("\n")[0] or type(error).__name__, _MOST_CAUSE)
            waited = time.monotonic() - since
            if told and waited + pause > self.tier.patience:
                raise GivenUp(f"{self}: {what}: given up after {waited:.1f} s ({cause})")
            if not told:
                tell(f"{self}: {what}: broke and is tried again ({cause})")
                told = True
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    @cached_property
    def _obstore(self) -> Any:
        return need("obstore", "tiers")

    @cached_property
    def _store(self) -> Any:
        self._obstore  # noqa: B018 - whether it is there
        from obstore.store import LocalStore, S3Store

        directory = self.tier.directory
        if directory is not None:
            return LocalStore(directory / self._run, mkdir=True, automatic_cleanup=True)
        boto3 = need("boto3", "tiers")
        from obstore.auth.boto3 import Boto3CredentialProvider

        session = boto3.session.Session()
        client = session.client("s3")
        endpoint = client.meta.endpoint_url
        bucket, _, path = self.tier.place.removeprefix("s3://").partition("/")
        return S3Store(
            bucket,
            prefix=f"{path.strip('/')}/{self._run}".lstrip("/"),
            region=client.meta.region_name,
            endpoint=None if endpoint.endswith((".amazonaws.com", ".amazonaws.com.cn")) else endpoint,
            credential_provider=Boto3CredentialProvider(session),
            client_options={"allow_http": endpoint.startswith("http://"), "timeout": "120s"},
            retry_config={
                "max_retries": _QUICK_RETRIES,
                "retry_timeout": timedelta(seconds=min(self.tier.patience, 180.0)),
            },
        )

    def _list(self, prefix: str) -> Any:
        directory = self.tier.directory
        if directory is not None and not (directory / self._run).is_dir():
            return {"common_prefixes": [], "objects": []}
        return self._obstore.list_with_delimiter(self._store, prefix or None)
