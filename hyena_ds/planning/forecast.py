"""A run on machines that it has not seen: for every stage what it needs, and what would be better. Imports no torch.

    config, cluster --plan_stages--> stages --peak_memory, step_time--> Forecast
                                            --other grids, batches, policies--> the better one, or one that fits

The global batch and the steps stay as they are: what is changed gives the same training.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hyena_ds.config.arithmetic import Saving, StagePlan, divisors, plan_stages, savings
from hyena_ds.config.policy import KEPT_UNITS, PolicyName
from hyena_ds.config.schema import RunConfig
from hyena_ds.cost.devices import Cluster
from hyena_ds.cost.memory import Memory, peak_memory
from hyena_ds.cost.shape import StepShape, shape_of_stage
from hyena_ds.cost.step_time import StepTime, step_time

USABLE = 0.95
"""Share of a device's memory that a plan fills."""
WORTH = 0.95
"""Share of the predicted time: another grid is told when it takes less than this."""
_NEARLY = 1.03
"""How much longer than the fastest a grid may take: of those, the one that needs least memory is told."""
_MOST_RANKS = 1 << 16
_OF_A_PREDICTION = 20
"""Grids that do not divide and are passed over in the time of one prediction."""


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
    is_searched: bool = True
    """Whether all of them were looked at for `cure` and `better`."""

    @property
    def seconds(self) -> float:
        """Seconds of all its steps."""
        return self.plan.config.step_count * self.prediction.time.seconds


def predict(shape: StepShape, cluster: Cluster) -> Prediction:
    """Memory and time of a step."""
    memory = peak_memory(shape, cluster.device)
    fits = memory.total <= USABLE * cluster.device.memory
    return Prediction(shape, memory, step_time(shape, cluster), fits)


class Search:
    """How much of a plan's time goes into other grids than the one that was asked for: a batch may divide in many ways."""

    def __init__(self, most: int = 100_000):
        """`most` grids are looked at; one that is predicted counts as `_OF_A_PREDICTION`."""
        self._left = most

    @property
    def is_over(self) -> bool:
        """Whether the search has used up its tries."""
        return self._left < 0

    def predict_if(self, shape: StepShape | None, cluster: Cluster) -> Prediction | None:
        """The prediction, if it fits; None also where there is no such grid, or the search is over."""
        self._left -= _OF_A_PREDICTION if shape is not None else 1
        if shape is None or self.is_over:
            return None
        found = predict(shape, cluster)
        return found if found.fits else None


def forecast(config: RunConfig, cluster: Cluster) -> list[Forecast]:
    """Every stage on the cluster. Raises UserError when ranks or batch do not divide."""
    forecasts, search = [], Search()
    for plan in plan_stages(config, cluster.ranks):
        prediction = predict(shape_of_stage(config, plan, cluster.device.on_cpu), cluster)
        cure = None if prediction.fits else cheapest_cure(config, plan, cluster, search)
        better = better_grid(prediction, cluster, search)
        forecasts.append(Forecast(plan, prediction, cure, better, not search.is_over))
    return forecasts


def better_grid(now: Prediction, cluster: Cluster, search: Search) -> Prediction | None:
    """What `best_grid` finds, if it is worth changing to."""
    best = best_grid(now.shape, cluster, search)
    if best is None or (now.fits and best.time.seconds > WORTH * now.time.seconds):
        return None
    return best


def best_grid(shape: StepShape, cluster: Cluster, search: Search) -> Prediction | None:
    """The fastest of all grids, micro batches and policies that fit; of nearly equal ones the smallest."""
    fitting = fitting_grids(shape, cluster, search)
    if not fitting:
        return None
    fastest = min(found.time.seconds for found in fitting)
    return min(
        (found for found in fitting if found.time.seconds <= _NEARLY * fastest), key=lambda found: found.memory.total
    )


def fitting_grids(shape: StepShape, cluster: Cluster, search: Search) -> list[Prediction]:
    """The same step on every grid, micro batch and policy that fits, its own among them; those that `search` comes to."""
    others = itertools.takewhile(lambda _: not search.is_over, _others(shape, cluster.ranks))
    return [found for other in others if (found := search.predict_if(other, cluster)) is not None]


def _others(shape: StepShape, ranks: int) -> Iterator[StepShape]:
    for sp in divisors(ranks):
        if shape.width % sp or shape.context_length % sp or shape.sequences % (ranks // sp):
            continue
        of_row = shape.sequences // (ranks // sp)
        for batch in divisors(of_row):
            for policy in KEPT_UNITS:
                if (other := shape.on(sp, batch, policy, ranks)) is not None:
                    yield other


def cheapest_cure(config: RunConfig, plan: StagePlan, cluster: Cluster, search: Search) -> Cure | None:
    """The fewest changed settings that fit, those that cost least time; where nothing fits, on twice the machines, and so on."""
    shape, nodes = shape_of_stage(config, plan, cluster.device.on_cpu), cluster.nodes
    while nodes * cluster.devices_per_node <= _MOST_RANKS and not search.is_over:
        wider = replace(cluster, nodes=nodes)
        cures = []
        changes = itertools.takewhile(lambda _: not search.is_over, _changes(config, plan))
        for settings, policy, micro, sp in changes:
            found = search.predict_if(shape.on(sp, micro, policy, wider.ranks), wider)
            if found is not None:
                cures.append(Cure(settings, found, wider.ranks))
        if cures:
            return min(cures, key=lambda cure: (len(cure.settings), cure.prediction.time.seconds))
        nodes *= 2
    return None


def _changes(config: RunConfig, plan: StagePlan) -> Iterator[tuple[tuple[str, ...], PolicyName, int, int]]:
    """Savings of one kind, of two and of all three: settings, and the policy, micro batch and ranks that come of them."""
    now = Saving("", plan.activation_policy, plan.micro_batch_size, plan.config.sequence_parallel)
    single = [now, *savings(config, plan)]
    policies = [
        s for s in single if (s.micro_batch_size, s.sequence_parallel) == (now.micro_batch_size, now.sequence_parallel)
    ]
    micros = [now, *(s for s in single if s.micro_batch_size != now.micro_batch_size)]
    cuts = [now, *(s for s in single if s.sequence_parallel != now.sequence_parallel)]
    for of_policy, of_micro, of_cut in itertools.product(policies, micros, cuts):
        settings = tuple(saving.setting for saving in (of_policy, of_micro, of_cut) if saving is not now)
        yield settings, of_policy.activation_policy, of_micro.micro_batch_size, of_cut.sequence_parallel
