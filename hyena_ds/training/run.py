"""A whole run, on one rank of it.

    check shards --> model (fresh, initialised or resumed) --> engine --> per stage: steps, validation, checkpoints
    --> last validation, Markov baselines, summary

Rank 0 speaks and writes; every rank runs the same collectives in the same order.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
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
from hyena_ds.data.loader import Slice, StepBatch, stage_steps
from hyena_ds.data.provenance import write_order
from hyena_ds.data.shards import read_index, verify_shard
from hyena_ds.data.stream import Sample, Sources, validation_samples
from hyena_ds.evaluation.markov import bits, markov_losses
from hyena_ds.evaluation.validation import validate
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.published import read_weights
from hyena_ds.monitoring.recorder import Recorder, finite
from hyena_ds.ops.convolution_backend import FFT, Choice, choose_convolution
from hyena_ds.parallel.agreement import agreed, from_every_rank
from hyena_ds.parallel.devices import Compute, peak_memory_gib, start_compute
from hyena_ds.parallel.layout import Layout
from hyena_ds.parallel.topology import Topology, create_groups
from hyena_ds.training import non_finite
from hyena_ds.training.engine import build_engine, quiet
from hyena_ds.training.local_ranks import bind_cores
from hyena_ds.training.machine_faults import in_a_sentence
from hyena_ds.training.run_directory import RunDirectory
from hyena_ds.training.step import StepResult, train_step

BASELINE_ORDERS = (0, 2, 5)


def train(config: RunConfig) -> int:
    """Train `config` as one rank of the launcher's process group; returns the exit code. Raises UserError on all ranks."""
    if not config.deepspeed_log:
        quiet()
    bind_cores()
    compute = start_compute()
    try:
        return _train(config, compute)
    finally:
        # Back ends end their threads here; left to the interpreter's exit, gloo sometimes aborts the process.
        dist.destroy_process_group()


def _train(config: RunConfig, compute: Compute) -> int:
    directory = RunDirectory(config)
    agreed(lambda: directory.check(config))
    if agreed(directory.is_complete):
        if compute.rank == 0:
            print("\n".join(complete_message(directory)))
        return 0
    plans = plan_stages(config, compute.ranks)
    choice = common_convolution(config, compute)
    agreed(lambda: _check_shards(config, compute))
    _Run(config, compute, directory, plans, choice).to_the_end()
    return 0


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
    ):
        self.config = config
        self.compute = compute
        self.directory = directory
        self.plans = plans
        self.choice = choice
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
        load_moments(engine, moments, state.updates)
        return engine, state

    def _engine(self, model: HyenaDNA) -> deepspeed.DeepSpeedEngine:
        return build_engine(self.config, model.to(self.compute.device), self.compute.ranks)

    def to_the_end(self) -> None:
        self.recorder: Recorder | None = None
        if self.compute.rank == 0:
            agreed(self._create_directory)
            self.recorder = self._open_recorder()
        else:
            agreed(lambda: None)
        self._say(*describe(self.config, self.compute.ranks))
        self._say(f"convolution: {self.choice.convolution.name} ({self.choice.why})")
        if self.state.step:
            self._say(f"resuming after step {self.state.step}")
        try:
            while self.state.step < self.config.total_steps:  # a roll back may lead into an earlier stage
                plan = next(plan for plan in self.plans if self.state.step < plan.end_step)
                with in_a_sentence(self.config, plan, self.compute):
                    self._stage(plan)
            with in_a_sentence(self.config, self.plans[-1], self.compute):
                self._finish()
        finally:
            if self.recorder is not None:
                self.recorder.close()

    def _create_directory(self) -> None:
        self.directory.create(self.config)
        write_order(self.directory.stream, self.config)

    def _open_recorder(self) -> Recorder:
        directory = self.directory
        return Recorder(
            directory.metrics, directory.log, directory.tensorboard, self.state.step, self.config.total_steps
        )

    def _stage(self, plan: StagePlan) -> None:
        """The steps of a stage that are still to be done; ends early when the run is rolled back."""
        config, compute = self.config, self.compute
        run, row = self._place(plan)
        part = Slice(row, run.layout.offset, run.layout.local_length)
        held_out = validation_samples(self.held_out, plan.config.context_length, config.validation.windows)
        for batch in stage_steps(config.data, config.seed, plan, part, self.state.step):
            self.state = replace(self.state, step=batch.step + 1, stage=plan.number)
            if batch.step in self.state.passed_over:
                self._record_passed_over(plan)
            else:
                began = time.perf_counter()
                rate = learning_rate(config.optimizer, batch.step, config.total_steps)
                result = train_step(self.engine, batch, run, compute, config.seed, rate)
                seconds = time.perf_counter() - began
                if result.skipped:
                    self.state = replace(self.state, skipped=(*self.state.skipped, batch.step))
                else:
                    self.state = replace(self.state, tokens=self.state.tokens + plan.config.tokens_per_step)
                self._record_step(plan, result, rate, seconds)
                if result.skipped and self._is_rolled_back(plan, batch, run, result):
                    return
            last = self.state.step == plan.end_step
            if last or self.state.step % config.validation.every_steps == 0:
                self._validate(plan, run, row, held_out)
            due = self.state.step % config.checkpoint.every_steps == 0
            # Among skipped steps a checkpoint would be no place to roll back to.
            if last or (due and not non_finite.in_a_row(self.state)):
                save_checkpoint(self.directory.checkpoints, self.engine, config, self.state, compute)

    def _is_rolled_back(self, plan: StagePlan, batch: StepBatch, run: ForwardPass, result: StepResult) -> bool:
        """After a skipped step: say so, and roll the run back when it is time to. Raises NotFiniteError at the end."""
        policy, now = self.config.non_finite, self.state
        samples = non_finite.to_blame(self.engine, batch, run, self.compute, self.config, plan)
        found = non_finite.says(result)
        verdict = non_finite.verdict(now, policy)
        if verdict is non_finite.Verdict.STOP:
            raise non_finite.stop(now, policy, found, samples)
        self._say(f"step {now.step}: skipped, {found}; samples: {non_finite.named(samples)}")
        if verdict is non_finite.Verdict.SKIP:
            return False
        self.engine.destroy()
        del self.engine  # before another one is built beside it
        self.engine, checkpoint = self._start()
        self.state = non_finite.rolled_back(now, checkpoint)
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = self._open_recorder()
        ahead = ", ".join(str(step + 1) for step in self.state.passed_over if step >= checkpoint.step)
        self._say(f"rolled back to step {checkpoint.step}; nothing will be trained on these steps: {ahead}")
        return True

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
        if result.skipped:
            row["skipped"] = True
        else:
            spike = self.recorder.losses.spike(result.loss)
            row |= {} if spike is None else {"loss_spike": spike}
            self.recorder.losses.add(result.loss)
        self.recorder.row(row, "train")
        self.recorder.advance(self.state.step, result.loss)

    def _record_passed_over(self, plan: StagePlan) -> None:
        if self.recorder is None:
            return
        row = {
            "step": self.state.step,
            "stage": plan.number,
            "context_length": plan.config.context_length,
            "loss": None,
            "skipped": True,
            "passed_over": True,
            "tokens": self.state.tokens,
        }
        self.recorder.row(row, "train")
        self.recorder.advance(self.state.step, math.nan)

    def _validate(self, plan: StagePlan, run: ForwardPass, row: int, samples: list[Sample]) -> None:
        loss_sum, scored = validate(self.engine, self.held_out, samples, plan, run, self.compute, row)
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
                f"step {self.state.step}: validation loss {loss:.4f} nats a base, perplexity "
                f"{self.last_validation['validation_perplexity']:.4f} (context {plan.config.context_length:,}, {scored:,} bases)"
            )

    def _finish(self) -> None:
        plan = self.plans[-1]
        run, row = self._place(plan)
        samples = validation_samples(self.held_out, plan.config.context_length, self.config.validation.windows)
        if not self.last_validation:  # killed between the last checkpoint and the summary
            self._validate(plan, run, row, samples)
        if self.recorder is not None:
            self.recorder.end_progress()
            self._say("counting Markov baselines on the training bases")
            baselines = markov_losses(
                Sources(self.config.data, "train"), self.held_out, samples, plan.config.context_length, BASELINE_ORDERS
            )
            self.directory.write_summary(
                {**finite(self.last_validation), "markov_losses": {str(k): v for k, v in baselines.items()}}
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
