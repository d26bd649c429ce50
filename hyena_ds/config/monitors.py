"""`monitors` in a run's config: where its curves go besides TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WandbConfig:
    """Where Weights & Biases keeps a run's curves. Its own variables (WANDB_MODE, WANDB_API_KEY, ...) work as everywhere."""

    project: str
    """Project that the run appears in."""
    group: str | None = None
    """Group of the project, for instance a sweep; by default none."""
    team: str | None = None
    """Team (entity) that owns the project; by default the user's own."""


@dataclass(frozen=True)
class MonitorsConfig:
    """DeepSpeed's monitors, which get what TensorBoard gets."""

    csv: bool = False
    """Write a CSV file for each curve into the run's directory, under csv/."""
    wandb: WandbConfig | None = None
    """Send the curves to Weights & Biases; takes its package, wandb."""
