"""One YAML file is one whole run: this is its schema.

Field docstrings say meaning and unit. Checks raise and never rewrite; numbers that follow from others are properties,
and those that depend on the number of ranks are in `arithmetic`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from hyena_ds.config.checkpoint import CheckpointConfig
from hyena_ds.config.limits import (
    ABOVE_0,
    MOST,
    MOST_LOCAL_RANKS,
    MOST_SECONDS,
    MOST_SEQUENCES,
    MOST_SOURCES,
    MOST_STAGES,
    MOST_STEPS,
    MOST_WORKERS,
    Bound,
    Bounded,
)
from hyena_ds.config.loading import require as _require
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.monitors import MonitorsConfig
from hyena_ds.config.policy import PolicyName
from hyena_ds.config.remote import CacheConfig, check_place, is_afar
from hyena_ds.config.schedule import StageConfig, WarmupConfig
from hyena_ds.config.survival import NonFiniteConfig, SupervisorConfig, WatchdogConfig
from hyena_ds.config.task import TaskConfig
from hyena_ds.config.watching import CorruptionConfig, ProfileConfig, StragglersConfig
from hyena_ds.text import parse_duration


@dataclass(frozen=True)
class SourceConfig(Bounded):
    """One set of shards."""

    shards: str
    """Directory that `hyena-ds prep` wrote, or the address of a copy of it: `http(s)://HOST/PATH`,
    `s3://BUCKET/PATH`, or `pipe:COMMAND` with `{shard}` in it. `${NAME}` in it is an environment variable."""
    weight: Annotated[float, Bound(ABOVE_0, MOST)] = 1.0
    """Share of the samples that come from here, relative to the other sources."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_place(self.shards, "shards")


@dataclass(frozen=True)
class DataConfig(Bounded):
    """What is read, and what of it is scored."""

    sources: tuple[SourceConfig, ...] = ()
    """Sets of shards, mixed by their weights. A run has these or a `task`."""
    reverse_complement: bool = False
    """Read half of the training windows from the other strand."""
    random_offset: bool = True
    """Begin the windows of every epoch at another base, so that a small genome gives many different windows."""
    append_end_token: bool = False
    """Make [SEP] the last token of every sample, as the published recipe did."""
    ignore: tuple[Literal["n", "unknown"], ...] = ("n", "unknown")
    """Target tokens that are not scored."""
    shuffle_shards: Annotated[int, Bound(1, MOST)] = 16
    """Windows are shuffled within groups of this many shards (and shards across the epoch)."""
    workers: Annotated[int, Bound(0, MOST_WORKERS)] = 0
    """Processes per rank that read ahead; 0 reads in the training process. Beside a GPU they start as programs of their own, which
    takes some seconds of every stage: a forked one would have CUDA's context."""
    verify: bool = True
    """Check every shard's SHA-256 before the first step. What is fetched from another machine is always checked when it
    arrives; then this is about what the cache holds from earlier runs."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Where a node keeps the shards that it fetched from other machines."""

    def __post_init__(self) -> None:
        super().__post_init__()
        found = len(self.sources)
        _require(found <= MOST_SOURCES, "sources", f"found {found:,} sources, wanted at most {MOST_SOURCES:,}")

    @property
    def is_afar(self) -> bool:
        """Whether any shards have to be fetched."""
        return any(is_afar(source.shards) for source in self.sources)


@dataclass(frozen=True)
class OptimizerConfig(Bounded):
    """AdamW with HyenaDNA's parameter groups (no weight decay on the implicit filter), warmup and cosine decay."""

    learning_rate: Annotated[float, Bound(ABOVE_0, MOST)] = 6e-4
    """Peak of the schedule."""
    minimum_learning_rate: Annotated[float, Bound(0, MOST)] = 6e-5
    """Where the cosine ends."""
    warmup_fraction: float = 0.01
    """Share of the run's steps over which the learning rate rises linearly from `warmup_learning_rate`."""
    warmup_learning_rate: Annotated[float, Bound(0, MOST)] = 1e-6
    """Learning rate of the first step."""
    weight_decay: Annotated[float, Bound(0, MOST)] = 0.1
    """AdamW's weight decay: a step shrinks a weight by this times the learning rate. The implicit filter has none."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """Decay of AdamW's first and second moment in a step."""
    epsilon: Annotated[float, Bound(ABOVE_0, MOST)] = 1e-8
    """Added to the root of AdamW's second moment."""
    gradient_clipping: Annotated[float, Bound(0, MOST)] = 1.0
    """Largest gradient norm; 0 does not clip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 <= self.warmup_fraction < 1, "warmup_fraction", f"found {self.warmup_fraction}, wanted 0 to below 1")
        _require(
            self.minimum_learning_rate <= self.learning_rate,
            "minimum_learning_rate",
            f"found {self.minimum_learning_rate}, wanted at most learning_rate {self.learning_rate}",
        )
        valid = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(valid, "betas", f"found {list(self.betas)}, wanted two numbers from 0 to below 1")


@dataclass(frozen=True)
class ValidationConfig(Bounded):
    """A fixed set of held-out windows, evenly spread over the valid split."""

    every_steps: Annotated[int, Bound(1, MOST_STEPS)] = 100
    """Steps between validations; there is always one at the end of a stage."""
    windows: Annotated[int, Bound(1, MOST_SEQUENCES)] = 64
    """Windows that are scored; fewer when the split holds fewer."""
    final_context: Literal["always", "boundaries", "never"] = "boundaries"
    """When windows of the last stage's context length are scored too, while a stage of another length trains: at every
    validation, at the end of every stage, or never. It changes nothing of the training."""


@dataclass(frozen=True)
class RunConfig(Bounded):
    """A whole run."""

    name: str
    """The run lives in `output`/`name`."""
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    stages: tuple[StageConfig, ...] = ()
    """Rows of the context schedule. May be left out with a `warmup`."""
    warmup: WarmupConfig | None = None
    """A ladder of doubling context lengths before the rows of `stages`."""
    task: TaskConfig | None = None
    """Labelled sequences to fine-tune on, in the place of `data.sources`."""
    output: str = "runs"
    """Directory of runs."""
    seed: int = 2222
    """Where the initial weights, the order of samples and dropout come from."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    supervisor: SupervisorConfig = field(default_factory=SupervisorConfig)
    non_finite: NonFiniteConfig = field(default_factory=NonFiniteConfig)
    stragglers: StragglersConfig = field(default_factory=StragglersConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    profile: ProfileConfig | None = None
    """Steps of which every rank writes a trace and a table by operator; by default none."""
    monitors: MonitorsConfig = field(default_factory=MonitorsConfig)
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards over all ranks: nothing, optimizer state, gradients too, parameters too."""
    offload_optimizer: Literal["cpu"] | None = None
    """Where a rank's share of AdamW's state lives, and is updated by torch's AdamW: cpu, the host's memory. Needs
    `zero_stage` 1 to 3. Left out, the device's."""
    offload_param: Literal["cpu"] | None = None
    """Where a rank's share of the parameters lives between passes: cpu, the host's memory. Needs `zero_stage` 3."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of projections and MLP; filter, FFT, norms and loss are always float32."""
    exchange_precision: Literal["float32", "bfloat16"] | None = None
    """What activations are rounded to on their way between the ranks of a sequence; left out, what `precision` says. On a GPU
    also what the long convolution reads and writes. Filters are exchanged in float32."""
    activation_policy: PolicyName = "balanced"
    """What a block keeps for backward and what it recomputes (activation or gradient checkpointing): fastest, balanced,
    lean or leanest, from the most memory and least time to the reverse."""
    convolution: Literal["auto", "fft", "cudnn", "fused"] = "auto"
    """Back end of the long convolution: PyTorch's FFT; cuDNN's, or Triton's fused in three passes for contexts of 16,384 to
    2,097,152 tokens (neither has run on a GPU yet), each refused unless it is there and agrees with the FFT; or auto, which
    takes the fused one where it would not be refused and is faster, else cuDNN's where it would not be refused."""
    kernels: Literal["portable", "native", "triton", "auto"] = "auto"
    """What computes a block around the long convolution: PyTorch's operations; on a CPU, C functions (native), which the machine's
    compiler makes at the first use, and PyTorch's operations where it cannot or the two disagree; Triton kernels, which also
    pack what sequence ranks exchange, refused unless there is a GPU on which each agrees with the portable code; or auto,
    which takes Triton's where they would not be refused."""
    cuda_graphs: bool = False
    """Record forward and backward of a micro step once, and replay it: for contexts of up to 32,768 tokens, whose kernels a
    card finishes faster than they are started. Needs a GPU, and memory for one more set of gradients. Parts of a cut sequence and
    longer contexts run as without."""
    initialize_from: str | None = None
    """A weights.safetensors (ours or in the published layout), a checkpoint or a run to start from. Its maximum context
    must be the model's, unless `model.extension` says how it is extended."""
    resume: str = "latest"
    """latest: continue from the newest whole checkpoint of the run's directory, if there is one. never: refuse a directory
    that holds a run. PATH: continue from that checkpoint, of this run or another."""
    local_ranks: Annotated[int | None, Bound(1, MOST_LOCAL_RANKS)] = None
    """Processes that `hyena-ds train` starts on a workstation; by default one a GPU, else the widest stage's need."""
    steps_only: bool = False
    """Train, and neither validate nor count baselines; write no weights at the end. `hyena-ds tune` measures steps so."""
    deepspeed_log: bool = False
    """Let DeepSpeed's own messages through."""
    stop_after: str | None = None
    """Time after which the run saves a checkpoint and leaves with exit code 75, as 3h50m or in seconds; counted from the
    start of the command."""

    def __post_init__(self) -> None:
        plain = bool(self.name) and "/" not in self.name and not self.name.startswith(".")
        _require(plain, "name", f"found '{self.name}', wanted a plain directory name")
        super().__post_init__()
        _require(
            len(self.data.sources) > 0 or self.task is not None,
            "data",
            "sources: found none, wanted at least one source, or a task in their place",
        )
        _require(
            not (self.data.sources and self.task is not None),
            "task",
            "found a task and data.sources, wanted one of them: a run trains on labelled sequences or on shards; leave one out",
        )
        _require(
            not self.steps_only or self.task is None,
            "steps_only",
            "found it with a task, wanted data.sources; leave it out",
        )
        sharded = self.offload_optimizer is None or self.zero_stage > 0
        _require(
            sharded, "offload_optimizer", "found cpu with zero_stage 0, which shards no state, wanted zero_stage 1 to 3"
        )
        _require(
            self.offload_param is None or self.zero_stage == 3,
            "offload_param",
            f"found cpu with zero_stage {self.zero_stage}, which leaves parameters whole, wanted zero_stage 3",
        )
        rows = len(self.stages)
        _require(rows <= MOST_STAGES, "stages", f"found {rows:,} stages, wanted at most {MOST_STAGES:,}")
        _require(0 <= self.seed < 2**31, "seed", f"found {self.seed}, wanted 0 to 2^31 - 1")
        _require(len(self.schedule) > 0, "stages", "found an empty list, wanted at least one stage, or a warmup")
        try:
            seconds = self.stop_after_seconds
        except ValueError:
            _require(
                False, "stop_after", f"found '{self.stop_after}', wanted a time like 3h50m, 90s or 13800 (seconds)"
            )
        _require(
            seconds is None or seconds <= MOST_SECONDS,
            "stop_after",
            f"found '{self.stop_after}', wanted at most {MOST_SECONDS:,.0f} seconds",
        )
        _require(
            self.model.extension is None or self.initialize_from is not None,
            "initialize_from",
            f"found none, wanted weights of maximum_context {self.model.extended_from}, which model.extension extends; "
            "name them, or leave model.extension and model.extended_from out",
        )
        _require(
            not (self.data.is_afar and self.watchdog.enabled and self.data.cache.patience >= self.watchdog.step),
            "data",
            f"cache.patience is {self.data.cache.patience:g} seconds, wanted less than watchdog.step "
            f"{self.watchdog.step:g}: the watchdog would end the run before it could say which shard does not come",
        )
        for number, stage in enumerate(self.schedule):
            key, within = self.place(number)
            row = f"stage {within}" if key == "stages" else f"rung {within}"
            _require(
                stage.context_length <= self.model.maximum_context,
                key,
                f"{row} has context_length {stage.context_length}, longer than model.maximum_context "
                f"{self.model.maximum_context}; raise maximum_context or shorten it",
            )
            _require(
                self.model.width % stage.sequence_parallel == 0,
                key,
                f"{row} has sequence_parallel {stage.sequence_parallel}, which does not divide model.width "
                f"{self.model.width}: every rank takes width / sequence_parallel channels; "
                + ("choose a divisor of the width" if key == "stages" else "raise tokens_per_rank"),
            )

    def place(self, number: int) -> tuple[Literal["warmup", "stages"], int]:
        """Where the YAML has a stage of the schedule, for messages: the key, and the number of the rung or row in it."""
        rungs = len(self.schedule) - len(self.stages)
        return ("warmup", number) if number < rungs else ("stages", number - rungs)

    @property
    def schedule(self) -> tuple[StageConfig, ...]:
        """Every stage of the run, in order: the warmup's rungs, then the rows of `stages`."""
        return (*(self.warmup.rungs if self.warmup else ()), *self.stages)

    @property
    def stop_after_seconds(self) -> float | None:
        """`stop_after` in seconds; None where the run has no deadline."""
        return None if self.stop_after is None else parse_duration(self.stop_after)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.step_count for stage in self.schedule)

    @property
    def total_tokens(self) -> int:
        """Tokens of all stages."""
        return sum(stage.total_tokens for stage in self.schedule)

    @property
    def exchanged_in(self) -> Literal["float32", "bfloat16"]:
        """The precision of exchanged activations, whether configured or that of the products."""
        return self.exchange_precision or self.precision

    @property
    def widest_sequence_parallel(self) -> int:
        """Most ranks that share a sequence in any stage."""
        return max(stage.sequence_parallel for stage in self.schedule)
