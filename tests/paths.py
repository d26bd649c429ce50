"""Where tests find what the repository ships, and what it does not."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
GENOME = ROOT / "assets" / "hg38_chr2_0-2333275.fa.gz"
DATA = Path(os.environ.get("HYENA_DATA") or ROOT.parent / "shared" / "data")
"""Real data that the repository does not ship; where they are missing, tests of them are skipped."""
