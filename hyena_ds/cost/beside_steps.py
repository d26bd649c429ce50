"""What a run asks of a large cluster beside its steps: calls to the file system, exchanges, bytes of checkpoints. Imports no torch.

Counts are of the code as it is, on nodes of 8 ranks and 10 shards of one source: tests/training/test_scale.py counts them again
with 8, 64 and 512 ranks, and fails where they differ. What was measured is of docs/results/scale.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from hyena_ds.config.model import ModelConfig
from hyena_ds.cost.shape import parameters
from hyena_ds.genome.tokenizer import VOCABULARY

RANKS_OF_A_NODE = 8
SHARDS = 10
"""What the counts are of."""


@dataclass(frozen=True)
class Asked:
    """A phase of a run: calls that open, list, look at, make, rename or remove something, and exchanges of short lists."""

    rank: int
    """Calls of the busiest rank: of each kind, the most that one makes."""
    node: int
    """Calls of the busiest node, where there are several."""
    once: int
    """All ranks together make `once` calls and, for each node, `each_node`."""
    each_node: int
    exchanges: int | None
    """In which all ranks take part; None where there is one for every tensor too."""

    def calls(self, nodes: int) -> int:
        """Calls of all ranks."""
        return self.once + self.each_node * nodes

    def file_seconds(self, nodes: int) -> float:
        """Seconds of the calls: those of the busiest rank, one after the other, or of all, whichever is longer."""
        return max(FILE_CALL * self.rank, self.calls(nodes) / FILE_CALLS)


START = Asked(rank=61, node=243, once=22, each_node=221, exchanges=15)
SAVE = Asked(rank=31, node=46, once=30, each_node=16, exchanges=9)
SAVE_AND_REMOVE = Asked(rank=47, node=77, once=47, each_node=25, exchanges=17)
"""A save after which an older checkpoint goes."""
RESUME = Asked(rank=85, node=350, once=32, each_node=318, exchanges=None)
LOOKS_OF_A_STEP = 1
"""Calls of a node in a step that reads no shard: its first rank looks for the stop file."""
STATE_FILES_OF_A_NODE, OTHER_FILES = 1, 3
"""Files of a checkpoint: the others are weights, run state and manifest."""

INDEX_SHARDS, INDEX_GENOMES = 3131, 101
TRAIN_SHARDS_OF_A_GENOME = 30
INDEX_MIB = 31.0
"""Counted by `hyena-ds bench shards`: what a rank holds of an index of so many shards."""
CACHE_GIB = 9.5
"""Counted by it too: what a node's cache holds of them, for each shard of a genome that is shuffled together with others."""
FETCHED_GIB = 0.52 / (512 << 20)
"""And what a node fetches of them for each token that all ranks read."""
FIRST_STEP_SECONDS = 3.5
"""Measured by it: from process group and warm cache to the first step, with such an index."""
WATCHED_STEP, COMPARED_STEP = 1.002, 1.007
"""CPU seconds of a step whose waits are timed and parameters summed, and of one after which the ranks compare, beside a step at
which nobody looks: measured by `hyena-ds bench watch`."""

FILE_CALL, FILE_CALLS = 1e-3, 20_000
"""Assumed of a shared file system: seconds of a call, and calls a second of all nodes."""
FILE_RATE_OF_A_NODE, FILE_RATE_OF_ALL = 1e9, 20e9
"""Assumed of it: bytes a second."""
HOST_COPY = 25e9
"""Assumed: bytes a second from a device to its host's memory."""
PROCESSES_START_IN = 60.0
"""Assumed: seconds until all processes of a run have imported what they need and found each other."""


def checkpoint_files(nodes: int) -> int:
    """Files of a checkpoint."""
    return STATE_FILES_OF_A_NODE * nodes + OTHER_FILES


@dataclass(frozen=True)
class Written:
    """Bytes of a checkpoint that the busiest rank writes, the busiest node, and all."""

    state_of_rank: float
    """Without its share of weights.safetensors: what training waits for, while it is copied."""
    rank: float
    node: float
    total: float


def checkpoint_written(config: ModelConfig, zero_stage: int, nodes: int) -> Written:
    """How a checkpoint falls on ranks: 12 bytes of state a weight, and weights.safetensors on those of the first node.

    From ZeRO stage 1 on each rank writes an even part; at stage 0, whole parameters go round the ranks, and the busiest one has
    at most as many of the largest as come to it.
    """
    weights, ranks = parameters(config), nodes * RANKS_OF_A_NODE
    most = weights / ranks
    if zero_stage == 0:
        most = min(float(weights), -(-tensors(config) // ranks) * largest_tensor(config))
    state = 12.0 * most
    share = min(4.0 * weights, 4.0 * (weights / RANKS_OF_A_NODE + (largest_tensor(config))))
    node = min(12.0 * weights, RANKS_OF_A_NODE * state) + 4.0 * weights
    return Written(state, state + share, node, 16.0 * weights)


def tensors(config: ModelConfig) -> int:
    """Parameters of the language model, counted as tensors: embedding and last norm, and of a layer norms, operator, filter, MLP."""
    return 3 + config.layers * (4 + 7 + 8 + 4)


def largest_tensor(config: ModelConfig) -> int:
    """Elements of its largest parameter."""
    D, F = config.width, config.filter_width
    return max(3 * D * D, D * config.mlp_width, VOCABULARY * D, F * D, F * F, F * config.filter_features)
