"""What others have measured: tables as their papers print them, of one model and one source each. Takes no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from hyena_ds.config.limits import Bound, Bounded
from hyena_ds.config.loading import require

Metric = Literal[
    "accuracy",
    "mcc",
    "f1",
    "f1_macro",
    "f1_weighted",
    "auroc",
    "auprc",
    "median_auroc",
    "pearson",
    "spearman",
    "r2",
]
MOST_SEEDS = 1000


@dataclass(frozen=True)
class PublishedTable(Bounded):
    """Scores of one model from one source."""

    model: str
    """What the table calls it."""
    source: str
    """Where they are printed."""
    scores: dict[str, float]
    """By task, as shares: 0.85 for 85 %."""
    spreads: dict[str, float] = field(default_factory=dict)
    """By task, where the source has them."""
    spread: str | None = None
    """What a spread is, as: standard deviation over 5 folds."""
    seeds: Annotated[int | None, Bound(1, MOST_SEEDS)] = None
    """Runs behind a score."""
    metrics: dict[str, Metric] = field(default_factory=dict)
    """By task, where it is not the task's own: such a score is not comparable."""
    independent: bool = False
    """Whether others than the model's authors measured it."""
    differs: str | None = None
    """How data or protocol differ from the suite's; its scores stand beside ours as not comparable."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.scores), "scores", "found none, wanted a score by task")
        for name in self.spreads:
            require(name in self.scores, "spreads", f"found one of {name}, which has no score")
        require(
            bool(self.spreads) == (self.spread is not None), "spread", "wanted it with spreads, to say what they are"
        )
