"""What becomes of a run whose ranks hold different numbers where they must hold the same.

    Seen --line of faults.jsonl--> checkpoints from after the ranks last agreed, set aside --training/run.py--> rolled back
         --no roll back left, or no checkpoint from before--> CorruptedError

No step is passed over afterwards: a machine is to blame, and no sample.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from hyena_ds.checkpoints.directory import checkpoints_in, set_aside_after, step_of
from hyena_ds.checkpoints.local_tier import LocalTier
from hyena_ds.checkpoints.manifest import RunState
from hyena_ds.config.survival import NonFiniteConfig
from hyena_ds.errors import CorruptedError
from hyena_ds.files.rows import MENDED
from hyena_ds.parallel.agreement import from_rank_zero
from hyena_ds.runs.directory import RunDirectory
from hyena_ds.runtime.heartbeat import Fault
from hyena_ds.runtime.watchdog import append_fault
from hyena_ds.training.watch import Seen


def set_aside(
    seen: Seen, now: RunState, directory: RunDirectory, policy: NonFiniteConfig, alike: int, local: LocalTier | None
) -> str:
    """Leave those checkpoints that `seen` casts no doubt on; what is to be said. No checkpoint may be under way.

    After step `alike` all numbers agreed. Collective; raises CorruptedError on all ranks.
    """
    text = f"{seen.corrupted}; seen in step {now.step}, and after step {alike} all agreed"
    (kind,) = MENDED
    fault = Fault(kind, seen.suspects[0], now.step, text)
    parts = set() if local is None else local.steps()
    problem = from_rank_zero(lambda: cannot_mend(directory.checkpoints, now, policy, alike, parts))
    if problem is not None:
        raise CorruptedError(f"step {now.step}: {text}; {problem}")
    from_rank_zero(lambda: append_fault(directory.faults, fault))
    from_rank_zero(lambda: set_aside_after(directory.checkpoints, alike))
    if local is not None:
        local.remove_after(alike)
    return f"step {now.step}: {text}"


def cannot_mend(
    checkpoints: Path, now: RunState, policy: NonFiniteConfig, alike: int, parts: Collection[int] = ()
) -> str | None:
    """Why a run whose numbers differ since step `alike` cannot be rolled back, and what to do; None where it can.

    `parts` are the steps of which its hosts have parts on disks of their own.
    """
    if now.roll_backs >= policy.roll_backs:
        return (
            f"the run was rolled back {now.roll_backs} of {policy.roll_backs} times: replace that host or device, remove the "
            f"checkpoints after step {alike}, raise non_finite.roll_backs, and start the same line again"
        )
    steps = [*parts, *(step_of(path) for path in checkpoints_in(checkpoints))]
    if steps and min(steps) > alike:
        return (
            f"the oldest checkpoint that is left is of step {min(steps)}: start again under another name, with "
            "checkpoint.keep_last 2 or more"
        )
    return None
