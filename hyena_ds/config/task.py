"""`task` in a run's config: labelled sequences to fine-tune on, the head, and how a model is chosen.

task: {kind, train, valid, test, ...} + initialize_from --tasks/deriving.py--> model, stages, validation ... of a RunConfig
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from hyena_ds.config.limits import ABOVE_0, MOST, MOST_CONTEXT, MOST_SEQUENCES, MOST_STEPS, MOST_WIDTH, Bound, Bounded
from hyena_ds.config.loading import require

_WEIGHED = ("classification", "per_base")


@dataclass(frozen=True)
class HeadConfig(Bounded):
    """From hidden states to outputs."""

    pool: Literal["mean", "max", "last", "first"] = "mean"
    """What of a sequence's states the head sees: the mean, or the largest of every channel, of all of its bases; or the state
    of the last or the first base. A task of the kind per_base has a head at every base, and no pooling."""
    hidden: Annotated[int | None, Bound(1, MOST_WIDTH)] = None
    """Width of a hidden layer; by default there is none."""
    rate_scale: Annotated[float, Bound(ABOVE_0, MOST)] = 1.0
    """The head's learning rate is this times the run's."""


@dataclass(frozen=True)
class TaskConfig(Bounded):
    """Labelled sequences, and what is learnt of them."""

    kind: Literal["classification", "multilabel", "regression", "per_base"]
    """One of several classes; several outputs that are 0 or 1 (empty where not measured); numbers; or a class for every base."""
    train: str
    """A CSV, TSV or Parquet file with the columns sequence and label, a FASTA, BED or VCF, or a directory with a file for each
    class. All but the validation split of it is trained on."""
    test: str | None = None
    """Opened once, after training, by the chosen weights."""
    valid: str = "0.1"
    """A file like `train`, or the fraction of `train` that is set apart, by which the weights are chosen."""
    genome: str | None = None
    """FASTA from which intervals and variants are cut."""
    sequence: str = "sequence"
    """Column of the bases."""
    label: str = "label"
    """Column of the labels, or their beginning, as of label_1, label_2; for a VCF the key of INFO."""
    window: Annotated[int, Bound(1, MOST_CONTEXT)] = 1024
    """Bases that are taken round a variant of a VCF."""
    head: HeadConfig = field(default_factory=HeadConfig)
    frozen: Literal["false", "backbone", "probe"] = "false"
    """What stays as it is: nothing; the backbone, so that the head alone is trained; or, with probe, the backbone under a
    logistic or ridge regression (scikit-learn) of its pooled states, whose strength of regularisation is chosen on the
    validation split."""
    reverse_complement: bool = False
    """Train on half of the sequences from the other strand, and predict by the mean of both strands' outputs."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: in training the loss of a class counts the more, the rarer it is, as a weighted mean. Validation does not
    weigh."""
    metric: str | None = None
    """By which the weights are chosen on the validation split; by default mcc, median_auroc, pearson or mcc, by kind."""
    patience: Annotated[int | None, Bound(1, MOST_STEPS)] = None
    """The run ends after so many validations in a row without a better one; by default it trains all its steps."""
    epochs: Annotated[float, Bound(ABOVE_0, MOST_STEPS)] = 10.0
    """Times that every sequence is trained on. Stages that are written out have steps of their own."""
    batch: Annotated[int, Bound(1, MOST_SEQUENCES)] = 32
    """Sequences of an optimizer step, for the stage that follows from the data."""
    buckets: tuple[int, ...] = ()
    """Lengths, ascending, to which the sequences of a forward pass are padded, besides the context length; left out, they
    follow from the data."""
    rows: Annotated[int | None, Bound(1, MOST_STEPS)] = None
    """Take so many of the sequences that would be trained on, chosen by the seed; by default all."""
    like: str | None = None
    """Weights, a checkpoint or a run whose shape the model takes, with random weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.class_weights == "none" or self.kind in _WEIGHED,
            "class_weights",
            f"found balanced with the kind {self.kind}, wanted none: only {' and '.join(_WEIGHED)} have classes to balance",
        )
        require(
            self.kind != "per_base" or self.frozen != "probe",
            "frozen",
            "found probe with the kind per_base, wanted false or backbone: a probe is of one state a sequence",
        )
        require(
            self.head.hidden is None or self.frozen != "probe",
            "head",
            f"hidden: found {self.head.hidden} with frozen probe, wanted null: a probe is linear; or freeze the backbone alone",
        )
        ascending = all(
            here < after for here, after in zip((0, *self.buckets), (*self.buckets, MOST_CONTEXT), strict=True)
        )
        require(ascending, "buckets", f"found {list(self.buckets)}, wanted ascending positive lengths")
        fraction = self.valid_fraction
        require(
            fraction is None or 0 < fraction < 1,
            "valid",
            f"found the fraction {self.valid}, wanted one between 0 and 1, or a file",
        )

    @property
    def valid_fraction(self) -> float | None:
        """The share of `train` that is set apart; None where `valid` names a file."""
        try:
            return float(self.valid)
        except ValueError:
            return None
