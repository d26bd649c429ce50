"""A whole run, on one rank of it.

    checks --> starting (fresh, initialised or resumed) --> per stage: steps, validations, checkpoints
    --> baselines, summary

After every step the ranks' votes say whether to stop and whether a checkpoint is still being written. Every rank runs the
same collectives in the same order.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from hyena_ds.checkpoints.choice import whole_checkpoint
from hyena_ds.checkpoints.directory import checkpoints_in, name_of, step_of
from hyena_ds.checkpoints.local_tier import LocalTier
from hyena_ds.checkpoints.manifest import RunState
from hyena_ds.checkpoints.upload import Uploads
from hyena_ds.checkpoints.writer import CheckpointWriter
from hyena_ds.config.arithmetic import StagePlan, describe, describe_hosts, learning_rate, plan_stages
from hyena_ds.config.checkpoint import CheckpointConfig, TierConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.identity import ShardList
from hyena_ds.data.loader import Slice, StepBatch
from hyena_ds.errors import UnwrittenError
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.monitoring.monitors import check_monitors
from hyena_ds.ops.large import give_back
from hyena_ds.parallel.agreement import agreed, from_every_rank, from_rank_zero
from hyena_ds.parallel.devices import Compute
from hyena_ds.parallel.topology import create_groups
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime.interruption import Interruption, Stop
from hyena_ds.runtime.watchdog import Watchdog, longest_exchange
from hyena_ds.tasks.task import Task
from hyena_ds.training import corruption, non_finite
from hyena_ds.training.back_ends import BackEnds, common_back_ends
from hyena_ds.training.clock import StepClock
from hyena_ds.training.ending import conclude, leave_without_rows
from hyena_ds.training.environment import environment_of_all_ranks
from hyena_ds.training.graphs import check_graphs
from hyena_ds.training.journal import Journal
from hyena_ds.training.machine_faults import in_a_sentence
from hyena_ds.training.passes import pass_of_stage
from hyena_ds.training.profile import Profiler
from hyena_ds.training.scores import Scores
from hyena_ds.training.starting import early_check, resumed, roll_back, start
from hyena_ds.training.step import StepResult, train_step
from hyena_ds.training.watch import Seen, Watch


def train_on(
    compute: Compute,
    config: RunConfig,
    task: Task,
    directory: RunDirectory,
    interruption: Interruption,
    watchdog: Watchdog,
) -> int:
    """Train in a process group that is up; returns the exit code. Collective."""
    checkpoint = early_check(config, compute, directory)
    if from_rank_zero(directory.is_complete):
        if compute.rank == 0:
            print("\n".join(directory.complete_message()))
        return 0
    from_rank_zero(lambda: check_monitors(config.monitors))
    plans = plan_stages(config, compute.ranks)
    back_ends = common_back_ends(config, compute)
    agreed(lambda: check_graphs(config, compute.device))
    shards = task.check_data(compute)
    from_rank_zero(lambda: directory.compare_data(checkpoint, shards))
    patience = 2 * config.watchdog.silence
    with ExitStack() as held:
        agreed(lambda: held.enter_context(directory.held(patience)) if compute.rank == 0 else None)
        run = _Run(config, task, compute, directory, plans, back_ends, shards, interruption, watchdog)
        held.enter_context(run.clock.waits.of_deepspeed())
        return run.to_the_end()


class _Run:
    """What one run holds between steps."""

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        compute: Compute,
        directory: RunDirectory,
        plans: tuple[StagePlan, ...],
        back_ends: BackEnds,
        shards: ShardList,
        interruption: Interruption,
        watchdog: Watchdog,
    ):
        self.config, self.task, self.compute, self.directory, self.plans = config, task, compute, directory, plans
        self.interruption, self.watchdog, self.back_ends = interruption, watchdog, back_ends
        sizes, timeout = {plan.config.sequence_parallel for plan in plans}, longest_exchange(config.watchdog)
        self.groups = create_groups(sizes, compute.rank, compute.ranks, timeout)
        self.hosts = from_every_rank(socket.gethostname())
        self.clock = StepClock(compute)
        watchdog.look_at(self.clock.device_waits)
        self.watch = Watch(config, compute, self.clock)
        self.profiler = Profiler(config.profile, directory.path, compute, watchdog)
        self.scores = Scores(config, task, compute, plans, self._pass_of_stage, self._asked_to_stop, watchdog)
        started = start(config, task, compute, directory, shards)
        self.engine, self.state, self.news = started.engine, started.state, started.news
        self.watch.of_engine(self.engine, self.state.step)
        environment = environment_of_all_ranks(compute, self.state.step)
        from_rank_zero(lambda: self._create_directory(shards))
        self.journal = Journal(directory, config, task, started.run_name, self.state, compute)
        self.journal.starts(environment)
        where, say = directory.checkpoints, self.journal.say
        uploads = Uploads(config, where, compute, say, directory.metrics, started.in_tiers, self.state.step)
        self.local = LocalTier.of(config, where, compute)
        if self.local is not None:
            self.local.belongs_to(started.run_name, self.state.step)
        written = shards.digest, say, task.exported, uploads, self.local
        self.checkpoints = CheckpointWriter(where, config, compute, started.run_name, *written)

    def to_the_end(self) -> int:
        """Train what is left; the exit code."""
        self.journal.say(*describe(self.config, self.compute.ranks), *describe_hosts(self.config, self.hosts))
        self.journal.say(*self.back_ends.said, *self.news)
        try:
            self.interruption.hold()
            self._restore_scores()
            stop = self.scores.owed(self.engine, self.journal, self.state.step)
            while stop is None and not (
                self._is_trained() and self._ends_alike()
            ):  # after a roll back, at an earlier stage
                plan = next(plan for plan in self.plans if self.state.step < plan.end_step)
                with in_a_sentence(self.config, plan):
                    stop = self._stage(plan)
            self.profiler.close()
            if stop is not None:
                self.journal.say(
                    f"stopped by {stop.why} after step {self.state.step} of {self.config.total_steps}, which is saved; "
                    "the same command goes on from there"
                )
                return stop.code
            self.interruption.release()
            with in_a_sentence(self.config, self.plans[-1]):
                self._finish()
            return 0
        finally:
            self.journal.close()

    def _is_trained(self) -> bool:
        return self.state.step == self.config.total_steps or self.scores.selection.ends

    def _ends_alike(self) -> bool:
        """Whether the weights that the run ends with are the same everywhere; else it is rolled back. Collective."""
        seen = self.watch.at_the_end(self.engine, self.state.step)
        return seen.corrupted is None or self._mend(seen)

    def _restore_scores(self) -> None:
        whole = from_rank_zero(lambda: {step_of(path) for path in checkpoints_in(self.directory.checkpoints)})
        self.scores.restore(self.journal, whole)

    def _stage(self, plan: StagePlan) -> Stop | None:
        """Train a stage until it ends, is rolled back, or somebody asks to stop; what is reached then is saved."""
        call, part = self._pass_of_stage(plan)
        give_back()  # the tensors of another stage have other sizes
        batches = self.task.steps(plan, part, self.state.step)
        for batch in self.clock.reading(batches):
            self.state = replace(self.state, step=batch.step + 1, stage=plan.number)
            stop = None
            if batch.step in self.state.passed_over:
                self.journal.passed_over(plan, self.state)
            else:
                result, seen = self._step(plan, batch, call)
                *asked, writing, behind, _ = result.votes
                if not behind:  # else what becomes of the checkpoint under way is part of one sentence
                    self.checkpoints.after_step([writing])
                if seen.corrupted is not None:
                    self._mend(seen)
                    return None
                if result.skipped and self._is_rolled_back(plan, batch, call, result):
                    return None
                stop = self.interruption.stop_of(asked) or seen.stop
                if behind:
                    self._leave_without_rows()
            stop = stop or self.scores.after_step(self.engine, self.journal, plan, self.state.step)
            selection = self.scores.selection
            is_shared = self._is_saved(plan, stop) or selection.ends or selection.step == self.state.step
            if is_shared or self._is_due(self.config.checkpoint.local):
                self.watchdog.enter("save", self.state.step)
                self.checkpoints.save(self.engine, self.state, selection.step, local=not is_shared)
                self.watch.saved()
                stop = stop or self._asked_to_stop()
            if stop is not None:
                self.checkpoints.leave(self.watchdog.mark)
                return stop
            if selection.ends:
                name = self.task.best[0]
                self.journal.say(
                    f"step {self.state.step}: {selection.since} validations without a better {name}: the run ends"
                )
                return None
        return None

    def _step(self, plan: StagePlan, batch: StepBatch, call: ForwardPass) -> tuple[StepResult, Seen]:
        """One optimizer step and its row; the run's state counts it."""
        self.profiler.before(batch.step + 1)
        self.clock.begin()
        self.watch.begin(batch.step)
        rate = learning_rate(self.config.optimizer, batch.step, self.config.total_steps)
        self.watchdog.begin_step(batch.step + 1, plan.number, plan.config.tokens_per_step)
        seed, mark = self.config.seed, self.watchdog.mark
        result = train_step(self.engine, batch, call, self.compute, seed, rate, self._votes, mark, self.watch)
        self.watchdog.end_step()
        if result.skipped:
            self.state = replace(self.state, skipped=(*self.state.skipped, batch.step))
        else:
            self.state = replace(self.state, tokens=self.state.tokens + plan.config.tokens_per_step)
        cost, seen = self.clock.end(result.votes[-1]), self.watch.seen(result.gathered)
        self.journal.step(plan, self.state, result, rate, cost, seen.columns)
        self.journal.say(*(f"step {batch.step + 1}: {text}" for text in seen.slow))
        self.journal.say(*self.profiler.after(batch.step + 1))
        return result, seen

    def _is_saved(self, plan: StagePlan, stop: Stop | None) -> bool:
        """Whether a checkpoint is due in the run's directory."""
        return stop is not None or self.state.step == plan.end_step or self._is_due(self.config.checkpoint)

    def _is_due(self, place: CheckpointConfig | TierConfig | None) -> bool:
        """Whether it is a step at which a place gets a checkpoint. Among skipped steps it would be none to roll back to."""
        due = place is not None and self.state.step % place.every_steps == 0
        return due and not non_finite.in_a_row(self.state)

    def _votes(self) -> tuple[float, ...]:
        """Whether to stop, whether a checkpoint is being written, whether rows of earlier steps are not: on these the ranks
        have to agree; and the exchange share."""
        self.clock.computed()
        behind = float(self.journal.problem() is not None)
        return (*self.interruption.votes(), *self.checkpoints.votes(), behind, self.clock.exchange_share())

    def _leave_without_rows(self) -> None:
        """As `leave_without_rows`, at the step that is reached."""
        leave_without_rows(self.journal, self.directory, self.state.step, self._save_now)

    def _save_now(self) -> None:
        """Write a checkpoint, and wait for it. Collective."""
        self.watchdog.enter("save", self.state.step)
        self.checkpoints.save(self.engine, self.state, self.scores.selection.step)
        self.checkpoints.finish()

    def _asked_to_stop(self) -> Stop | None:
        """Whether any rank is to stop, where no step's exchange carries the votes. Collective."""
        votes = torch.tensor(self.interruption.votes(), dtype=torch.float64, device=self.compute.device)
        dist.all_reduce(votes)
        return self.interruption.stop_of(votes.tolist())

    def _is_rolled_back(self, plan: StagePlan, batch: StepBatch, call: ForwardPass, result: StepResult) -> bool:
        """After a skipped step: say so, and roll the run back when it is time to. Raises NotFiniteError at the end."""
        policy, now = self.config.non_finite, self.state
        samples = non_finite.to_blame(self.engine, batch, call, self.compute, self.config, self.task, plan)
        found = non_finite.says(result)
        consequence = non_finite.consequence(now, policy)
        if consequence is non_finite.Consequence.STOP:
            raise non_finite.stop(now, policy, found, samples)
        self.journal.say(f"step {now.step}: skipped, {found}; samples: {non_finite.named(samples)}")
        if consequence is non_finite.Consequence.SKIP:
            return False
        checkpoint = self._roll_back(blames=True)
        ahead = ", ".join(str(step + 1) for step in self.state.passed_over if step >= checkpoint.step)
        self.journal.say(f"rolled back to step {checkpoint.step}; nothing will be trained on these steps: {ahead}")
        return True

    def _mend(self, seen: Seen) -> bool:
        """Roll back to the newest checkpoint from before numbers differed; False. Raises CorruptedError where that cannot be."""
        self.watchdog.enter("save", self.state.step)
        self.checkpoints.finish()
        said = corruption.set_aside(
            seen, self.state, self.directory, self.config.non_finite, self.watch.alike, self.local
        )
        self.journal.say(said)
        self.journal.say(f"rolled back to step {self._roll_back(blames=False).step}")
        return False

    def _roll_back(self, blames: bool) -> RunState:
        """Go on from the newest checkpoint, whose state is returned; `blames` the skipped steps, as if they were the cause."""
        now = self.state
        self.watchdog.enter("save", now.step)
        self.checkpoints.finish()
        self.engine.destroy()
        del self.engine  # before another one is built beside it
        self.engine, checkpoint = roll_back(self.config, self.task, self.compute, self.directory)
        self.watch.of_engine(self.engine, checkpoint.step)
        self.state = non_finite.rolled_back(now, checkpoint, blames)
        self.journal.roll_back(self.state)
        self._restore_scores()
        return checkpoint

    def _pass_of_stage(self, plan: StagePlan) -> tuple[ForwardPass, Slice]:
        return pass_of_stage(plan, self.config, self.compute, self.groups, self.back_ends, self.clock.traffic)

    def _create_directory(self, shards: ShardList) -> None:
        self.directory.create(self.config, shards)
        self.task.write_order(self.directory.stream)

    def _finish(self) -> None:
        self.watchdog.enter("save", self.state.step)
        self.checkpoints.leave(self.watchdog.mark)
        self.watchdog.enter("finish", self.state.step)
        if from_rank_zero(self.journal.problem) is not None:
            self._leave_without_rows()
        tested = self._tested()
        parts = self.config, self.task, self.directory, self.journal, self.scores
        problem = from_rank_zero(lambda: conclude(*parts, self.state.step, tested))
        dist.barrier()
        if problem is not None:
            raise UnwrittenError(f"{problem}; step {self.state.step} is saved: make room, and start the run again")

    def _tested(self) -> list[NDArray[np.float32]]:
        """What the run's weights predict for the test set, which is opened here and nowhere else. Collective."""
        samples = agreed(self.task.test)
        if not samples:
            return []
        step = self.scores.selection.step
        if step is not None and step != self.state.step:
            self.engine.destroy()
            del self.engine  # before another one is built beside it
            checkpoint = whole_checkpoint(self.directory.checkpoints / name_of(step), self.compute)
            self.engine = resumed(self.config, self.task, self.compute, checkpoint)
        return self.scores.predictions(self.engine, samples)
