"""Programs that tests call and that `make test-packages` installs: without them a test is skipped, in CI it fails."""

from __future__ import annotations

import os
import shutil

import pytest


def needed(*names: str) -> str:
    """The path of the first of these names that is here."""
    for name in names:
        if (path := shutil.which(name)) is not None:
            return path
    reason = f"found no {names[0]}; make test-packages installs it"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
