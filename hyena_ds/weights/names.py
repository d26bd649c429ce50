"""The published models by name. Takes no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A model of the hub."""

    repository: str
    revision: str | None = None
    """The commit that others have got numbers with; None where none is known, and the newest is taken."""
    sha256: str | None = None
    """Digest of model.safetensors in that revision."""


def _of(name: str, revision: str | None = None, sha256: str | None = None) -> Published:
    return Published(f"LongSafari/hyenadna-{name}-hf", revision, sha256)


PUBLISHED = {
    "tiny-1k": _of(
        "tiny-1k-seqlen",
        "e8c1effa8673814e257e627d2e1eda9ea5a373f6",
        "5ce2146c21e9c4baa6bddc4998fd3d029903ae84a563bf80218644082194a12d",
    ),
    "tiny-1k-d256": _of("tiny-1k-seqlen-d256"),
    "tiny-16k": _of("tiny-16k-seqlen-d128"),
    "small-32k": _of("small-32k-seqlen", "8fe770c78eb13fe33bf81501612faeddf4d6f331"),
    "medium-160k": _of(
        "medium-160k-seqlen",
        "7ebf71773d22c0ede2cc55cb2be15ee8c289e1ce",
        "16685b36caf5d144da391f1b540ed47e89d79b3efd38899325492f174b8e852a",
    ),
    "medium-450k": _of("medium-450k-seqlen"),
    "large-1m": _of(
        "large-1m-seqlen",
        "0a629abf9c7f85b4ec9aa6a1aefa3adcf1907446",
        "deafb53209bfafb314d14bd81108546a34d473c07ed7ab7a355674376b56ad12",
    ),
}
"""Revisions are those of published_outputs/; that of tiny-1k, and every SHA-256, were published by tcztzy/evo.cpp."""
