"""What one rank does in an optimizer step, as the counts need it: a stage of a run on a grid. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hyena_ds.config.arithmetic import StagePlan
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import POLICIES, Policy, PolicyName
from hyena_ds.config.schema import RunConfig
from hyena_ds.genome.tokenizer import VOCABULARY

Precision = Literal["float32", "bfloat16"]
KernelsName = Literal["portable", "native", "triton"]


@dataclass(frozen=True)
class StepShape:
    """A model, a batch, a grid, and how the step runs."""

    config: ModelConfig
    context_length: int
    batch: int = 1
    """Sequences of a micro step on a data-parallel row."""
    accumulation: int = 1
    data_parallel: int = 1
    sequence_parallel: int = 1
    policy: PolicyName = "balanced"
    precision: Precision = "float32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    exchange_precision: Precision = "float32"
    """Precision of activations on their way between ranks."""
    kernels: KernelsName = "portable"
    """What computes a block around the long convolution. Predictions know portable and triton; of native, on a CPU, they say what portable takes."""
    offload_optimizer: bool = False
    """Whether the optimizer's state is in the host's memory."""
    offload_param: bool = False
    """Whether a rank's share of the parameters is there between passes."""

    @property
    def exchanged_size(self) -> int:
        """Bytes of an element of an activation that goes to another rank."""
        return 2 if self.exchange_precision == "bfloat16" else 4

    @property
    def width(self) -> int:
        """Channels of the model."""
        return self.config.width

    @property
    def layers(self) -> int:
        """Blocks of the model."""
        return self.config.layers

    @property
    def local_length(self) -> int:
        """Tokens of a rank's slice."""
        return self.context_length // self.sequence_parallel

    @property
    def own_channels(self) -> int:
        """Channels of a rank in the channel layout."""
        return self.width // self.sequence_parallel

    @property
    def activation_policy(self) -> Policy:
        """The activation policy by its name."""
        return POLICIES[self.policy]

    @property
    def ranks(self) -> int:
        """Ranks of the whole grid."""
        return self.data_parallel * self.sequence_parallel

    @property
    def sequences(self) -> int:
        """Sequences of an optimizer step, over all ranks."""
        return self.batch * self.accumulation * self.data_parallel

    @property
    def tokens(self) -> int:
        """Tokens of an optimizer step, over all ranks."""
        return self.sequences * self.context_length

    def on(self, sequence_parallel: int, batch: int, policy: PolicyName, ranks: int) -> StepShape | None:
        """The same step on another grid; None where the sequences do not divide."""
        if ranks % sequence_parallel or self.context_length % sequence_parallel or self.width % sequence_parallel:
            return None
        rows = ranks // sequence_parallel
        if self.sequences % (rows * batch) or (sequence_parallel > 1 and self.context_length < 2 * sequence_parallel):
            return None
        return replace(
            self,
            sequence_parallel=sequence_parallel,
            data_parallel=rows,
            batch=batch,
            accumulation=self.sequences // (rows * batch),
            policy=policy,
        )


def kernels_of_run(config: RunConfig, on_cpu: bool) -> KernelsName:
    """The kernels that a run takes, if a check at its start finds them right on its device."""
    return "portable" if on_cpu or config.kernels == "portable" else "triton"


def shape_of_stage(config: RunConfig, plan: StagePlan, on_cpu: bool) -> StepShape:
    """A stage as it stands in the schedule."""
    return StepShape(
        config.model,
        plan.config.context_length,
        plan.micro_batch_size,
        plan.accumulation,
        plan.data_parallel,
        plan.config.sequence_parallel,
        plan.activation_policy,
        config.precision,
        config.zero_stage,
        config.exchanged_in,
        kernels_of_run(config, on_cpu),
        config.offload_optimizer is not None,
        config.offload_param is not None,
    )


def parameters(config: ModelConfig) -> int:
    """Weights of the language model; the head is the embedding."""
    D, inner, F, E = config.width, config.mlp_width, config.filter_width, config.filter_features
    norms = 2 * 2 * D
    operator = 3 * D * D + 3 * D + 3 * D * 3 + 3 * D + D + D * D + D
    implicit_filter = E * F + F + 2 * (F * F + F) + F * D + F
    mlp = 2 * D * inner + inner + D
    return VOCABULARY * D + 2 * D + config.layers * (norms + operator + implicit_filter + mlp)


def checkpoint_bytes(config: ModelConfig) -> int:
    """Parameters and two moments in float32, and weights.safetensors; names, manifest and config are left out."""
    return (3 + 1) * 4 * parameters(config)
