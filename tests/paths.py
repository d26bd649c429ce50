"""Where tests find what the repository ships."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
GENOME = ROOT / "assets" / "hg38_chr2_0-2333275.fa.gz"
