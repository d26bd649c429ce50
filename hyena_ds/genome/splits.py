"""The splits of a genome, by name."""

from __future__ import annotations

SPLITS = ("train", "valid", "test")
