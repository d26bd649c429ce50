"""A process that reads every step of a small stage and prints a digest of it:  PLACE CACHE [SETTING=VALUE ...]"""

from __future__ import annotations

import hashlib
import sys

from hyena_ds.config.remote import CacheConfig
from hyena_ds.config.schema import DataConfig, SourceConfig
from hyena_ds.data.loader import Slice, stage_steps
from tests.data.genomes import plan

L = 16


def digest(config: DataConfig) -> str:
    """The digest of all tokens and targets of 25 steps of 8 sequences, more than an epoch of the small genome."""
    found = hashlib.sha256()
    for batch in stage_steps(config, 7, plan(L, 8, steps=25), Slice(0, 0, L), 0):
        for micro in batch.micro_batches:
            found.update(micro.token_ids_Bl.numpy().tobytes())
            found.update(micro.targets.numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    place, directory = sys.argv[1:3]
    print(digest(DataConfig((SourceConfig(place),), shuffle_shards=2, cache=CacheConfig(directory, 1.0, 2.0, 20.0))))
