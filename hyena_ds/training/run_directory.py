"""`runs/NAME/`: what a run leaves, and whether a directory may be continued.

config.yaml  stream.jsonl  metrics.jsonl  log.txt  summary.json (at the end)  tensorboard/  checkpoints/
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from hyena_ds.config.loading import dump_yaml, to_plain
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError

SUMMARY = "summary.json"
_NOT_THE_RUN = re.compile(
    r"resume|local_ranks|deepspeed_log|convolution|activation_policy|non_finite\.\w+"
    r"|stages\.\d+\.(micro_batch_size|sequence_parallel)|data\.workers"
)
"""Settings that may change when a run is continued: the steps, their samples and their order stay what they were."""


class RunDirectory:
    """Paths of a run."""

    def __init__(self, config: RunConfig):
        self.path = Path(config.output) / config.name
        self.config_file = self.path / "config.yaml"
        self.stream = self.path / "stream.jsonl"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "log.txt"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.summary = self.path / SUMMARY

    def is_complete(self) -> bool:
        return self.summary.is_file()

    def check(self, config: RunConfig) -> None:
        """Raise UserError unless the directory is new, or holds this very run and the config lets it continue."""
        if not self.path.exists():
            return
        if not self.config_file.is_file():
            if any(self.path.iterdir()):
                raise UserError(f"{self.path}: found a directory that is no run; choose another name or output")
            return
        before = _flatten(yaml.safe_load(self.config_file.read_text(encoding="utf-8")))
        now = _flatten(yaml.safe_load(dump_yaml(config)))
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        changed = [key for key in changed if not _NOT_THE_RUN.fullmatch(key)]
        if changed:
            shown = ", ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed[:3])
            raise UserError(
                f"{self.path}: holds another run ({len(changed)} settings differ: {shown}); choose another name, "
                "or remove the directory to start afresh"
            )
        if config.resume == "never":
            raise UserError(f"{self.path}: holds a run and resume is 'never'; choose another name or resume: latest")

    def create(self, config: RunConfig) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.config_file.exists():
            partial = self.path / ".config.yaml.partial"
            partial.write_text(dump_yaml(config), encoding="utf-8")
            partial.replace(self.config_file)

    def write_summary(self, summary: dict[str, Any]) -> None:
        partial = self.path / f".{SUMMARY}.partial"
        partial.write_text(json.dumps(to_plain(summary), indent=1) + "\n")
        partial.replace(self.summary)


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(_flatten(item, f"{path}.{key}" if path else str(key)))
    return flat
