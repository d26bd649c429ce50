"""A run on machines that it has not seen: for every stage what it needs, and what would be better. Imports no torch.

    config, cluster --plan_stages--> stages --peak_memory, step_time--> Forecast
                                            --other grids, batches, policies--> the better one, or one that fits

The global batch and the steps stay as they are: what is changed gives the same training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hyena_ds.config.arithmetic import StagePlan, plan_stages
from hyena_ds.config.policy import KEPT_UNITS
from hyena_ds.config.savings import savings
from hyena_ds.config.schema import RunConfig
from hyena_ds.planning.devices import Cluster, Device
from hyena_ds.planning.memory import Memory, peak_memory
from hyena_ds.planning.shape import StepShape, shape_of_stage
from hyena_ds.planning.step_time import StepTime, step_time

USABLE = 0.95
"""Share of a device's memory that a plan fills."""
WORTH = 0.95
"""Of the predicted time: another grid is told when it takes less than this."""
_NEARLY = 1.03
"""Of grids that take no longer than this beside the fastest, the one that needs least memory is told."""
_MOST_RANKS = 1 << 16


@dataclass(frozen=True)
class Prediction:
    """A step on a cluster."""

    shape: StepShape
    memory: Memory
    time: StepTime
    fits: bool


@dataclass(frozen=True)
class Cure:
    """The cheapest change that makes a stage fit."""

    settings: tuple[str, ...]
    prediction: Prediction
    ranks: int
    """How many it takes; as many as there are, where that is enough."""


@dataclass(frozen=True)
class Forecast:
    """One stage."""

    plan: StagePlan
    prediction: Prediction
    cure: Cure | None
    """For a stage that does not fit; None too where nothing helps."""
    better: Prediction | None
    """Another grid, micro batch or policy on the same ranks that takes less time, if one is worth it."""

    @property
    def seconds(self) -> float:
        """Of all its steps."""
        return self.plan.config.step_count * self.prediction.time.seconds


def predict(shape: StepShape, cluster: Cluster) -> Prediction:
    """Memory and time of a step."""
    memory = peak_memory(shape, cluster.device)
    return Prediction(shape, memory, step_time(shape, cluster), fits(memory, cluster.device))


def fits(memory: Memory, device: Device) -> bool:
    return memory.total <= USABLE * device.memory


def forecast(config: RunConfig, cluster: Cluster) -> list[Forecast]:
    """Every stage on the cluster. Raises UserError when ranks or batch do not divide."""
    forecasts = []
    for plan in plan_stages(config, cluster.ranks):
        prediction = predict(shape_of_stage(config, plan), cluster)
        cure = None if prediction.fits else cheapest_cure(config, plan, cluster)
        forecasts.append(Forecast(plan, prediction, cure, better_grid(prediction, cluster)))
    return forecasts


def better_grid(now: Prediction, cluster: Cluster) -> Prediction | None:
    """What `best_grid` finds, if it is worth changing to."""
    best = best_grid(now.shape, cluster)
    if best is None or (now.fits and best.time.seconds > WORTH * now.time.seconds):
        return None
    return best


def best_grid(shape: StepShape, cluster: Cluster) -> Prediction | None:
    """The fastest of all grids, micro batches and policies that fit; of nearly equal ones the smallest."""
    fitting = [found for other in _others(shape, cluster.ranks) if (found := predict(other, cluster)).fits]
    if not fitting:
        return None
    fastest = min(found.time.seconds for found in fitting)
    return min(
        (found for found in fitting if found.time.seconds <= _NEARLY * fastest), key=lambda found: found.memory.total
    )


def _others(shape: StepShape, ranks: int) -> Iterator[StepShape]:
    for sp in range(1, min(ranks, shape.width) + 1):
        if ranks % sp or shape.width % sp or shape.context_length % sp or shape.sequences % (ranks // sp):
            continue
        of_row = shape.sequences // (ranks // sp)
        for batch in (number for number in range(1, of_row + 1) if of_row % number == 0):
            for policy in KEPT_UNITS:
                if (other := shape.on(sp, batch, policy, ranks)) is not None:
                    yield other


def cheapest_cure(config: RunConfig, plan: StagePlan, cluster: Cluster) -> Cure | None:
    """Of single settings that make the stage fit on these ranks the one that costs least time; else of the leanest policy
    with one more setting; else the fewest ranks, in whole machines, over which the sequence can be cut."""
    shape = shape_of_stage(config, plan)
    leanest = next((s for s in savings(config, plan) if s.activation_policy == "leanest"), None)
    first = () if leanest is None else (leanest.setting,)
    leaner = replace(plan, activation_policy="leanest")
    for settings, of in (((), plan), (first, leaner)):
        cures = []
        for saving in savings(config, of):
            other = shape.on(saving.sequence_parallel, saving.micro_batch_size, saving.activation_policy, cluster.ranks)
            if other is not None and (found := predict(other, cluster)).fits:
                cures.append(Cure((*settings, saving.setting), found, cluster.ranks))
        if cures:
            return min(cures, key=lambda cure: cure.prediction.time.seconds)
    return _more_machines(config, leaner, first, shape, cluster)


def _more_machines(
    config: RunConfig, leaner: StagePlan, settings: tuple[str, ...], shape: StepShape, cluster: Cluster
) -> Cure | None:
    """With the leanest policy and single sequences: the narrowest cut that fits, on as many machines as it takes."""
    single = replace(leaner, micro_batch_size=1)
    if leaner.micro_batch_size > 1:
        smaller = [s for s in savings(config, leaner) if s.micro_batch_size == 1]
        settings = (*settings, *(s.setting for s in smaller))
    for saving in savings(config, single):
        if saving.sequence_parallel <= shape.sequence_parallel:
            continue
        nodes = cluster.nodes
        while nodes * cluster.devices_per_node % saving.sequence_parallel:
            nodes += 1
            if nodes * cluster.devices_per_node > _MOST_RANKS:
                break
        wider = replace(cluster, nodes=nodes)
        other = shape.on(saving.sequence_parallel, 1, "leanest", wider.ranks)
        if other is not None and (found := predict(other, wider)).fits:
            return Cure((*settings, saving.setting), found, wider.ranks)
    return None
