"""torchrun, with the ranks' own exit code: `python -m hyena_ds.training.torchrun [OPTIONS] -m hyena_ds train CONFIG`.

    ranks --exit codes--> torchrun --ChildFailedError--> the code of the first rank that failed

torchrun itself ends with 1 and a traceback whatever happened, but Kubernetes and `hyena-ds supervise` go by the code.
"""

from __future__ import annotations

import sys

from hyena_ds.errors import LocalError
from hyena_ds.parallel.heartbeat import FAULT_CODE


def run(arguments: list[str]) -> int:
    """Run torchrun with `arguments`; 0, the first failed rank's code, or 128 + the signal that ended it."""
    from torch.distributed import DistNetworkError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return 128 - failure.exitcode if failure.exitcode < 0 else failure.exitcode
    except DistNetworkError as error:
        taken = "EADDRINUSE" in str(error)
        cure = (
            "choose another MASTER_PORT, the same on every machine" if taken else "look whether machine 0 has started"
        )
        print(f"hyena-ds: error: the machines cannot meet: {_first_line(error)}; {cure}", file=sys.stderr, flush=True)
        return LocalError.exit_code if taken else FAULT_CODE
    return 0


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
