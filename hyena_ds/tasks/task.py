"""What a run trains: all that training knows of its data and its loss.

    Task --objective()--> Objective: one module, which the engine wraps
         --steps(plan, slice, step)--> StepBatch ... --Objective--> (loss sum, sums) --> one optimizer step
         --held_out, read--> MicroBatch ... --Objective--> sums, predictions --quality, measures--> the row of a validation
         --test, read------> MicroBatch ... --Objective--> predictions --tested--> what the chosen weights are worth

A Task is made once for each process of a run and handed to training by the command that starts it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.data.identity import ShardList
from hyena_ds.data.loader import MicroBatch, Slice, StepBatch
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.parallel.devices import Compute


class Objective(nn.Module, ABC):
    """One module that owns every parameter its forward uses, trained or frozen (`requires_grad`).

    All are saved under the names that they have here, resumed on any grid, and handed to `Task.exported`.
    """

    @abstractmethod
    def forward(self, batch: MicroBatch, call: ForwardPass) -> tuple[Tensor, ...]:
        """(loss sum, sums) of this rank's part of a micro batch: a scalar with a gradient, and a vector of float64.

        The sums are the number of losses that were added, then those of `Task.sums`. Added up over all ranks each counts
        once. A loss over a whole sequence belongs to one rank of its sequence group; the others add a zero that hangs on
        the same graph, so that all ranks run the same collectives backwards.

        A third tensor may follow, without a gradient: predictions (B, K), whole on every rank of a sequence group, or (B, l, K)
        of this rank's tokens. Validation hands them to `Task.measures`.
        """

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameters to train, in AdamW's groups: no weight decay on implicit filters (their MLP and frequency).

        A group may have a `rate_scale`, by which the learning rate of the schedule is multiplied. Source: the parameter
        groups that the published recipe really used.
        """
        trained = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        return [
            {"params": [p for name, p in trained if ".implicit_filter." not in name], "weight_decay": weight_decay},
            {"params": [p for name, p in trained if ".implicit_filter." in name], "weight_decay": 0.0},
        ]


class Conclusion(NamedTuple):
    """What is left to say of a run that is complete."""

    summary: dict[str, Any]
    """Entries of summary.json beside those of the last validation."""
    lines: list[str]
    """For the log."""


class Task(ABC):
    """Data, objective and measures of one kind of training."""

    sums: tuple[str, ...] = ()
    """Names of what the objective adds up beside losses and their number."""
    unit: str
    """What a loss is measured in."""
    counted: str
    """What a loss belongs to, in the plural."""
    held_out_name: str
    """What is validated on, in the plural."""
    headline: tuple[str, ...]
    """Columns of `quality` and `measures` that the log names after a validation, `loss` first."""
    best: tuple[str, bool]
    """The column by which one validation is better than another, and whether the lower one is."""
    selects: bool = False
    """Whether the run's weights are those of its best validation, and not the last."""
    patience: int | None = None
    """Validations in a row without a better one, after which a run that selects ends."""

    @abstractmethod
    def objective(self) -> Objective:
        """A module with its first weights: a function of the config alone, so that every rank makes the same."""

    @abstractmethod
    def initialize(self, objective: Objective) -> None:
        """Load what the config's `initialize_from` names. Raises UserError."""

    @abstractmethod
    def check_data(self, compute: Compute) -> ShardList:
        """Every split and stage of the run has its data, the same on all ranks: what they are, on rank 0. Collective.

        Raises UserError on all ranks.
        """

    @abstractmethod
    def write_order(self, file: Path) -> None:
        """Write down in what order the data will be read, for people."""

    @abstractmethod
    def steps(self, plan: StagePlan, part: Slice, from_step: int) -> Iterator[StepBatch]:
        """The steps of a stage from `from_step` (of the run) on, as this rank reads them."""

    @abstractmethod
    def samples(self, step: int) -> Sequence[Any]:
        """The samples of a step of the run, from 0, in their order; `str` of one says where it comes from."""

    @abstractmethod
    def held_out(self, context_length: int) -> Sequence[Any]:
        """The samples that are validated on at a context length, always the same ones."""

    @abstractmethod
    def read(self, samples: Sequence[Any], numbers: list[int], context_length: int, part: Slice) -> MicroBatch:
        """Read this rank's part of held-out samples; None among them stands for padding, of which nothing is scored."""

    @abstractmethod
    def quality(self, loss: float, sums: Sequence[float] = ()) -> dict[str, float]:
        """The columns of a row of metrics.jsonl, `loss` first, of a mean loss and the means of `sums`."""

    def length(self, samples: Sequence[Any], plan: StagePlan) -> int:
        """Tokens to which held-out samples of one forward are padded: a multiple of the ranks that share a sequence."""
        return plan.config.context_length

    def measures(self, samples: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """More columns of a validation, of what was predicted for each of `samples`. On rank 0 alone."""
        return {}

    def test(self) -> Sequence[Any]:
        """The samples of the test set, which is opened now and never before; none where a run has none. Raises UserError."""
        return ()

    def tested(self, step: int, predictions: Sequence[Any], directory: Path) -> tuple[dict[str, Any], list[str]]:
        """(`test` of summary.json, lines for the log) of what the weights of `step` predict for the samples of `test`.

        Writes the predictions into `directory`. On rank 0 alone, and only where `test` found samples: a Task that has some
        says here what becomes of them.
        """
        raise NotImplementedError

    @abstractmethod
    def conclude(self, context_length: int, quality: dict[str, float]) -> Conclusion:
        """Set the last validation, or the selected one, of `context_length`, beside baselines. On rank 0 alone."""

    @abstractmethod
    def exported(self, parameters: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
        """What weights.safetensors holds: the parameter of each name in it, of the objective's `parameters`; its header."""
