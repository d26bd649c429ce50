"""The process of one rank: it joins the group, is watched, trains, and says why where it cannot.

launcher's environment --start_compute--> process group --watchdog joins--> training/run.py --> exit code
"""

from __future__ import annotations

import torch.distributed as dist

from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import LocalError, UserError
from hyena_ds.parallel.agreement import agreed, from_rank_zero
from hyena_ds.parallel.devices import broken_collective, start_compute
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime.interruption import Interruption
from hyena_ds.runtime.local_ranks import bind_cores
from hyena_ds.runtime.watchdog import Watchdog, longest_exchange
from hyena_ds.tasks.task import Task
from hyena_ds.training.engine import quiet
from hyena_ds.training.run import train_on


def train(config: RunConfig, task: Task, interruption: Interruption) -> int:
    """Train `task` as one rank of the launcher's process group; returns the exit code. Raises UserError on all ranks.

    `interruption` listens already.
    """
    if not config.deepspeed_log:
        quiet()
    bind_cores()
    directory = RunDirectory(config)
    watchdog = Watchdog(config.watchdog, directory.faults)
    interruption.leave = watchdog.leave
    compute = start_compute(longest_exchange(config.watchdog), watched=config.watchdog.enabled)
    try:
        watchdog.join(compute.ranks, lambda value: from_rank_zero(lambda: value), agreed)
        return train_on(compute, config, task, directory, interruption, watchdog)
    except LocalError as error:
        watchdog.failed(error, of_collective=False)
        raise
    except UserError:
        raise
    except Exception as error:
        watchdog.failed(error, broken_collective(error))
        raise
    finally:
        watchdog.close()
        # Back ends end their threads here; left to the interpreter's exit, gloo sometimes aborts the process.
        dist.destroy_process_group()
