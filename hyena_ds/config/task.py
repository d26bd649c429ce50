"""`task` in a run's config: labelled sequences to fine-tune on, the head, and how a model is chosen.

task: {kind, train, valid, test, ...} + initialize_from --tasks/deriving.py--> model, stages, validation ... of a RunConfig
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from hyena_ds.config.limits import ABOVE_0, MOST, MOST_CONTEXT, MOST_SEQUENCES, MOST_STEPS, MOST_WIDTH, Bound, Bounded
from hyena_ds.config.loading import require

_LETTERS = "ACGTN"
"""Tokens that may stand for a class."""


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
class PromptConfig(Bounded):
    """A soft prompt: embeddings that no token has, trained under a model that stays as it is."""

    tokens: Annotated[int, Bound(0, MOST_CONTEXT)]
    """Embeddings before every sequence, and before its demonstrations; each as wide as the model."""


@dataclass(frozen=True)
class DemonstrationsConfig(Bounded):
    """Sequences of the train set with their labels, which stand before the one that is asked for.

    A sample is X1 [SEP] Y1 [SEP] X2 [SEP] Y2 [SEP] ... X [SEP], where X are bases and Y label tokens. In training the labels of
    the demonstrations are predicted too; the outputs of a sequence are those after its own [SEP].
    """

    per_class: Annotated[int, Bound(0, MOST_SEQUENCES)]
    """How many of every class, in random order, others for every sequence; the seed chooses them among all that may be trained on, also
    where `rows` takes some of these alone."""


@dataclass(frozen=True)
class TreesConfig(Bounded):
    """Boosted trees on a frozen model's pooled states; by default as many as HyenaDNA's evaluation of biotypes has."""

    rounds: Annotated[int, Bound(1, MOST_STEPS)] = 1000
    """Trees at most, one a round for each class or number (of two classes one); those up to the best round are kept."""
    depth: Annotated[int, Bound(1, 32)] = 3
    """Splits between a tree's root and its leaves."""
    rate: Annotated[float, Bound(ABOVE_0, 1)] = 0.1
    """What a tree's answer is multiplied by."""
    patience: Annotated[int, Bound(1, MOST_STEPS)] = 50
    """No more trees are added after so many rounds in a row that are no better on the validation split."""


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
    prompt: PromptConfig | None = None
    """Trained embeddings before every sequence; needs `frozen: backbone`. Pooling leaves them out."""
    demonstrations: DemonstrationsConfig | None = None
    """Labelled sequences before every sequence, for a classification without a head."""
    label_tokens: tuple[str, ...] = ()
    """Letters that stand for the classes, in their order: a [SEP] ends a sequence, and the outputs are the model's own logits of
    these letters there, in the place of a head's. With demonstrations, if they are left out: A and N of two classes; A, G and N of
    three."""
    frozen: Literal["false", "backbone", "probe", "trees"] = "false"
    """What stays as it is: nothing; the backbone, so that the head alone is trained; or, with probe, the backbone under a
    logistic or ridge regression (scikit-learn) of its pooled states, whose strength of regularisation is chosen on the
    validation split; or, with trees, the backbone under boosted trees (XGBoost) on them, as many as the validation split wants."""
    trees: TreesConfig = field(default_factory=TreesConfig)
    """For `frozen: trees` alone."""
    reverse_complement: bool = False
    """Train on half of the sequences from the other strand, and predict by the mean of both strands' outputs."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: in training the loss of a class counts the more, the rarer it is, as a weighted mean; of several outputs the loss
    of each one's positives, so that they weigh as much as its negatives. Validation does not weigh."""
    groups: dict[str, str] = field(default_factory=dict)
    """Sets of outputs of the kind multilabel that are also scored apart on the test set: name, and what the names of its outputs
    begin with, as in {TF: TF_, DHS: DHS_}."""
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
            self.class_weights == "none" or self.kind != "regression",
            "class_weights",
            "found balanced with the kind regression, wanted none: numbers have no classes to balance",
        )
        require(
            not self.groups or self.kind == "multilabel",
            "groups",
            f"found them with the kind {self.kind}, wanted multilabel, whose outputs they are of; leave them out",
        )
        require(
            self.kind != "per_base" or not self.on_embeddings,
            "frozen",
            f"found {self.frozen} with the kind per_base, wanted false or backbone: a {self.frozen.removesuffix('s')} is of one state a "
            "sequence",
        )
        require(
            self.kind != "multilabel" or self.frozen != "trees",
            "frozen",
            "found trees with the kind multilabel, wanted false, backbone or probe: trees are of classes or numbers",
        )
        require(
            self.trees == TreesConfig() or self.frozen == "trees",
            "trees",
            f"found settings of trees with frozen {self.frozen}, wanted frozen: trees; leave them out",
        )
        self._check_in_context()
        require(
            self.head.hidden is None or not self.on_embeddings,
            "head",
            f"hidden: found {self.head.hidden} with frozen {self.frozen}, wanted null: it has no layers; or freeze the backbone alone",
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

    def _check_in_context(self) -> None:
        letters = self.label_tokens
        require(
            len({*letters}) == len(letters) and all(len(each) == 1 and each in _LETTERS for each in letters),
            "label_tokens",
            f"found {' '.join(map(str, letters))}, wanted different letters of {' '.join(_LETTERS)}",
        )
        for key, value in (("demonstrations", self.demonstrations), ("label_tokens", letters or None)):
            require(
                value is None or self.kind == "classification",
                key,
                f"found them with the kind {self.kind}, wanted classification: a letter stands for a class; leave {key} out",
            )
        require(
            self.prompt is None or self.kind != "per_base",
            "prompt",
            "found one with the kind per_base, wanted a kind with one label a sequence",
        )
        require(
            self.prompt is None or self.frozen == "backbone",
            "frozen",
            f"found {self.frozen} with a prompt, wanted backbone: a soft prompt is trained under a model that stays as it is",
        )
        if self.reads_tokens:
            require(
                self.head == HeadConfig(),
                "head",
                "found one with label_tokens or demonstrations, wanted none: the outputs are the model's own logits; leave it out",
            )
            trains = self.frozen == "false" or (self.prompt is not None and self.prompt.tokens > 0)
            require(
                trains,
                "frozen",
                f"found {self.frozen} with label tokens and no prompt, wanted false, or a prompt: there is nothing to train",
            )

    @property
    def on_embeddings(self) -> bool:
        """Whether nothing is trained here, but something else is fitted on one pass of embeddings."""
        return self.frozen in ("probe", "trees")

    @property
    def in_context(self) -> bool:
        """Whether anything stands before or after the bases of a sequence."""
        return self.prompt is not None or self.reads_tokens

    @property
    def reads_tokens(self) -> bool:
        """Whether the outputs are the model's logits of label tokens, and not those of a head."""
        return self.demonstrations is not None or bool(self.label_tokens)

    @property
    def prompt_tokens(self) -> int:
        """Trained embeddings before a sequence."""
        return 0 if self.prompt is None else self.prompt.tokens

    @property
    def shots(self) -> int:
        """Demonstrations of every class."""
        return 0 if self.demonstrations is None else self.demonstrations.per_class

    @property
    def valid_fraction(self) -> float | None:
        """The share of `train` that is set apart; None where `valid` names a file."""
        try:
            return float(self.valid)
        except ValueError:
            return None
