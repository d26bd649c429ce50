"""A whole run, on one rank of it.

    check shards --> model (fresh, initialised or resumed) --> engine --> per stage: steps, validation, checkpoints
    --> last validation, Markov baselines, summary

Rank 0 speaks and writes; every rank runs the same collectives in the same order.
"""

from __future__ import annotations

import math
import time
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from hyena_ds.checkpoints.engine_state import load_moments
from hyena_ds.checkpoints.store import (
    WEIGHTS,
    RunState,
    check_same_shape,
    find_weights,
    latest_checkpoint,
    load_run_state,
    load_tensors,
    save_checkpoint,
    verify_checkpoint,
)
from hyena_ds.config.arithmetic import StagePlan, describe, learning_rate, plan_stages
from hyena_ds.config.policy import POLICIES
from hyena_ds.config.schema import RunConfig
from hyena_ds.data.loader import Slice, stage_steps
from hyena_ds.data.shards import read_index, verify_shard
from hyena_ds.data.stream import Sample, Sources, validation_samples
from hyena_ds.errors import UserError
from hyena_ds.evaluation.markov import bits, markov_losses
from hyena_ds.evaluation.validation import validate
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.published import read_weights
from hyena_ds.monitoring.recorder import Recorder
from hyena_ds.ops.convolution_backend import FFT, Choice, choose_convolution
from hyena_ds.parallel.agreement import agreed, from_every_rank, from_rank_zero
from hyena_ds.parallel.devices import Compute, broken_collective, peak_memory_gib, start_compute
from hyena_ds.parallel.layout import Layout
from hyena_ds.parallel.topology import Topology, create_groups
from hyena_ds.training.engine import build_engine, quiet
from hyena_ds.training.interruption import Interruption, Stop
from hyena_ds.training.local_ranks import bind_cores
from hyena_ds.training.run_directory import RunDirectory
from hyena_ds.training.step import StepResult, train_step
from hyena_ds.training.watchdog import Watchdog

BASELINE_ORDERS = (0, 2, 5)


def train(config: RunConfig, interruption: Interruption) -> int:
    """Train `config` as one rank of the launcher's process group; returns the exit code. Raises UserError on all ranks.

    `interruption` listens already.
    """
    if not config.deepspeed_log:
        quiet()
    bind_cores()
    directory = RunDirectory(config)
    watchdog = Watchdog(config.watchdog, directory.faults)
    interruption.leave = watchdog.leave
    compute = start_compute()
    try:
        watchdog.join(compute.ranks, lambda value: from_rank_zero(lambda: value), agreed)
        return _train(config, compute, directory, interruption, watchdog)
    except UserError:
        raise
    except Exception as error:
        watchdog.failed(error, broken_collective(error))
        raise
    finally:
        watchdog.close()
        # Back ends end their threads here; left to the interpreter's exit, gloo sometimes aborts the process.
        dist.destroy_process_group()


def _train(
    config: RunConfig, compute: Compute, directory: RunDirectory, interruption: Interruption, watchdog: Watchdog
) -> int:
    agreed(lambda: directory.check(config))
    if agreed(directory.is_complete):
        if compute.rank == 0:
            print("\n".join(complete_message(directory)))
        return 0
    plans = plan_stages(config, compute.ranks)
    choice = common_convolution(config, compute)
    agreed(lambda: _check_shards(config, compute))
    return _Run(config, compute, directory, plans, choice, interruption, watchdog).to_the_end()


def complete_message(directory: RunDirectory) -> list[str]:
    """What is said when a finished run is started again."""
    return [
        f"The run in {directory.path} is complete: {directory.path / 'summary.json'} holds its results.",
        f"To train on from its weights, give a config another name and initialize_from: {directory.path}",
        f"To start afresh, remove {directory.path}, or choose another name (name=OTHER on the command line).",
    ]


def common_convolution(config: RunConfig, compute: Compute) -> Choice:
    """The long convolution's back end, the same on every rank: cuDNN's only where none is without it. Collective."""
    lengths = [stage.context_length for stage in config.stages]
    own = agreed(lambda: choose_convolution(config.convolution, compute.device, lengths))
    for rank, without in enumerate(from_every_rank(own.why if own.convolution is FFT else None)):
        if without is not None:
            return Choice(FFT, f"rank {rank}: {without}" if rank else without)
    return own


def _check_shards(config: RunConfig, compute: Compute) -> None:
    """Every split and window that the run needs is there; every rank checks its share of the checksums."""
    indices = [read_index(source.shards) for source in config.data.sources]
    for split in ("train", "valid"):
        sources = Sources(config.data, split, indices)
        for stage in config.stages:
            sources.windows(stage.context_length)
    if config.data.verify:
        shards = [
            (source.shards, shard)
            for source, index in zip(config.data.sources, indices, strict=True)
            for shard in index.shards
        ]
        for path, shard in shards[compute.rank :: compute.ranks]:
            verify_shard(path, shard)


class _Run:
    """What one run holds between steps."""

    def __init__(
        self,
        config: RunConfig,
        compute: Compute,
        directory: RunDirectory,
        plans: tuple[StagePlan, ...],
        choice: Choice,
        interruption: Interruption,
        watchdog: Watchdog,
    ):
        self.config = config
        self.compute = compute
        self.directory = directory
        self.plans = plans
        self.choice = choice
        self.interruption = interruption
        self.watchdog = watchdog
        self.groups = create_groups((s.sequence_parallel for s in config.stages), compute.rank, compute.ranks)
        self.held_out = Sources(config.data, "valid")
        self.engine, self.state = self._start()
        self.last_validation: dict[str, Any] = {}

    def _start(self) -> tuple[deepspeed.DeepSpeedEngine, RunState]:
        """A fresh engine, or the one of the newest checkpoint."""
        checkpoint = agreed(lambda: latest_checkpoint(self.directory.checkpoints))
        model = build_model(self.config.model, self.config.seed)
        if checkpoint is None:
            if self.config.initialize_from is not None:
                agreed(lambda: _initialize(model, self.config))
            return self._engine(model), RunState(0, 0, 0)
        agreed(lambda: verify_checkpoint(checkpoint) if self.compute.rank == 0 else None)
        parameters, moments = agreed(lambda: load_tensors(checkpoint))
        state = agreed(lambda: load_run_state(checkpoint))
        model.load_state_dict(parameters)
        engine = self._engine(model)
        load_moments(engine, moments, state.step)
        return engine, state

    def _engine(self, model: HyenaDNA) -> deepspeed.DeepSpeedEngine:
        return build_engine(self.config, model.to(self.compute.device), self.compute.ranks)

    def to_the_end(self) -> int:
        """Train what is left; the exit code."""
        self.recorder: Recorder | None = None
        if self.compute.rank == 0:
            agreed(lambda: self.directory.create(self.config))
            self.recorder = Recorder(
                self.directory.metrics,
                self.directory.log,
                self.directory.tensorboard,
                self.state.step,
                self.config.total_steps,
            )
        else:
            agreed(lambda: None)
        self._say(*describe(self.config, self.compute.ranks))
        self._say(f"convolution: {self.choice.convolution.name} ({self.choice.why})")
        if self.state.step:
            self._say(f"resuming after step {self.state.step}")
        try:
            self.interruption.hold()
            stop = self._owed_validation()
            for plan in self.plans:
                if stop is None and self.state.step < plan.end_step:
                    stop = self._stage(plan)
            if stop is not None:
                self._say(
                    f"stopped by {stop.why} after step {self.state.step} of {self.config.total_steps}, which is saved; "
                    "the same command goes on from there"
                )
                return stop.code
            self.interruption.release()
            self._finish()
            return 0
        finally:
            if self.recorder is not None:
                self.recorder.close()

    def _stage(self, plan: StagePlan) -> Stop | None:
        """Train a stage to its end, or until somebody asks to stop; what is reached then is saved."""
        config, compute = self.config, self.compute
        run, row = self._place(plan)
        part = Slice(row, run.layout.offset, run.layout.local_length)
        held_out = validation_samples(self.held_out, plan.config.context_length, config.validation.windows)
        for batch in stage_steps(config.data, config.seed, plan, part, self.state.step):
            began = time.perf_counter()
            rate = learning_rate(config.optimizer, batch.step, config.total_steps)
            self.watchdog.begin_step(batch.step + 1, plan.number, plan.config.tokens_per_step)
            votes, mark = self.interruption.votes, self.watchdog.mark
            result = train_step(self.engine, batch, run, compute, config.seed, rate, votes, mark)
            self.watchdog.end_step()
            seconds = time.perf_counter() - began
            tokens = self.state.tokens + plan.config.tokens_per_step
            self.state = RunState(batch.step + 1, plan.number, tokens)
            self._record_step(plan, result, rate, seconds)
            stop = self.interruption.stop_of(result.votes)
            last = self.state.step == plan.end_step
            if stop is None and (last or self.state.step % config.validation.every_steps == 0):
                stop = self._validate(plan, run, row, held_out)
            if stop is not None or last or self.state.step % config.checkpoint.every_steps == 0:
                self.watchdog.enter("save", self.state.step)
                save_checkpoint(self.directory.checkpoints, self.engine, config, self.state, compute)
                stop = stop or self._asked_to_stop()
            if stop is not None:
                return stop
        return None

    def _asked_to_stop(self) -> Stop | None:
        """Whether any rank is to stop, where no step's exchange carries the votes. Collective."""
        votes = torch.tensor(self.interruption.votes(), dtype=torch.float64, device=self.compute.device)
        dist.all_reduce(votes)
        return self.interruption.stop_of(votes.tolist())

    def _owed_validation(self) -> Stop | None:
        """A run that was stopped between a step and its validation makes up for it; one without steps left needs it again."""
        step, recorder = self.state.step, self.recorder
        plan = next(plan for plan in self.plans if step <= plan.end_step)
        due = step > 0 and (step == plan.end_step or step % self.config.validation.every_steps == 0)
        there = from_rank_zero(lambda: recorder is not None and recorder.ends_with(step, "validation_loss"))
        if step < self.config.total_steps and (there or not due):
            return None
        run, row = self._place(plan)
        held_out = validation_samples(self.held_out, plan.config.context_length, self.config.validation.windows)
        return self._validate(plan, run, row, held_out)

    def _place(self, plan: StagePlan) -> tuple[ForwardPass, int]:
        """How the stage's passes run on this rank's slice, and its data-parallel row in the stage's grid."""
        topology = Topology(plan.data_parallel, plan.config.sequence_parallel)
        layout = Layout.slice_of(plan.config.context_length, topology, self.compute.rank, self.groups)
        policy, dtype = POLICIES[self.config.activation_policy], getattr(torch, self.config.precision)
        run = ForwardPass(layout, policy=policy, compute_dtype=dtype, convolution=self.choice.convolution)
        return run, topology.row(self.compute.rank)

    def _record_step(self, plan: StagePlan, result: StepResult, rate: float, seconds: float) -> None:
        memory = peak_memory_gib(self.compute)
        if self.recorder is None:
            return
        row = {
            "step": self.state.step,
            "stage": plan.number,
            "context_length": plan.config.context_length,
            "loss": result.loss,
            "perplexity": math.exp(min(result.loss, 700.0)),
            "learning_rate": rate,
            "gradient_norm": result.gradient_norm,
            "tokens": self.state.tokens,
            "tokens_per_second": plan.config.tokens_per_step / seconds,
            "peak_memory_gib": memory,
        }
        self.recorder.row(row, "train")
        self.recorder.advance(self.state.step, result.loss)

    def _validate(self, plan: StagePlan, run: ForwardPass, row: int, samples: list[Sample]) -> Stop | None:
        """Score the held-out windows, unless somebody asks to stop first."""
        self.watchdog.enter("validation", self.state.step)
        stop: Stop | None = None

        def stopping(forward: int) -> bool:
            nonlocal stop
            self.watchdog.mark(f"forward {forward + 1}")
            stop = self._asked_to_stop()
            return stop is not None

        result = validate(self.engine, self.held_out, samples, plan, run, self.compute, row, stopping)
        if result is None:
            return stop
        loss_sum, scored = result
        loss = loss_sum / scored
        self.last_validation = {
            "step": self.state.step,
            "stage": plan.number,
            "context_length": plan.config.context_length,
            "validation_loss": loss,
            "validation_perplexity": math.exp(min(loss, 700.0)),
        }
        if self.recorder is not None:
            self.recorder.row_once(self.last_validation, "validation")
            self._say(
                f"step {self.state.step}: validation loss {loss:.4f} nats a base, perplexity {math.exp(loss):.4f} "
                f"(context {plan.config.context_length:,}, {scored:,} bases)"
            )
        return None

    def _finish(self) -> None:
        plan = self.plans[-1]
        samples = validation_samples(self.held_out, plan.config.context_length, self.config.validation.windows)
        self.watchdog.enter("finish", self.state.step)
        if self.recorder is not None:
            self.recorder.end_progress()
            self._say("counting Markov baselines on the training bases")
            baselines = markov_losses(
                Sources(self.config.data, "train"), self.held_out, samples, plan.config.context_length, BASELINE_ORDERS
            )
            self.directory.write_summary(
                {**self.last_validation, "markov_losses": {str(k): v for k, v in baselines.items()}}
            )
            self._say(*self._closing_lines(self.last_validation["validation_loss"], baselines))
        dist.barrier()

    def _closing_lines(self, loss: float, baselines: dict[int, float]) -> list[str]:
        path = self.directory.path
        rows = [("HyenaDNA (this run)", loss)]
        rows += [(f"Markov, order {order}", value) for order, value in baselines.items()]
        lines = ["", f"held-out windows of {self.plans[-1].config.context_length:,} bases", ""]
        lines.append(f"  {'model':<22}{'nats a base':>12}{'bits a base':>12}{'perplexity':>12}")
        lines += [f"  {name:<22}{v:>12.4f}{bits(v):>12.4f}{math.exp(v):>12.4f}" for name, v in rows]
        beaten = [order for order, value in baselines.items() if loss < value]
        lines += [
            "",
            f"The model predicts better than order {', '.join(map(str, beaten))}."
            if beaten
            else "The model does not yet beat a Markov baseline: train it longer.",
            f"run: {path}   weights: {path / 'checkpoints' / f'step-{self.state.step:08d}' / WEIGHTS}",
            f"curves: tensorboard --logdir {path / 'tensorboard'}",
        ]
        return lines

    def _say(self, *lines: str) -> None:
        if self.recorder is not None:
            for line in lines:
                self.recorder.say(line)


def _initialize(model: HyenaDNA, config: RunConfig) -> None:
    path = find_weights(config.initialize_from or "")
    found, parameters = read_weights(path, config.model.filter_shift)
    check_same_shape(path, found, config.model)
    model.load_state_dict(parameters)
