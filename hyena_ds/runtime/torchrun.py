"""torchrun, with the ranks' own exit code: `python -m hyena_ds.runtime.torchrun [OPTIONS] -m hyena_ds train CONFIG`.

    ranks --exit codes--> torchrun --ChildFailedError--> the code of the first rank that failed

torchrun itself ends with 1 and a traceback whatever happened, but Kubernetes and `hyena-ds supervise` go by the code. Its
store listens on MASTER_ADDR alone: torchrun's own would on every address of the machine.
"""

from __future__ import annotations

import errno
import sys
from typing import Any

from hyena_ds.errors import LocalError, say
from hyena_ds.runtime.heartbeat import FAULT_CODE


def run(arguments: list[str]) -> int:
    """Run torchrun with `arguments`; 0, the first failed rank's code, or 128 + the signal that ended it."""
    from torch.distributed import DistNetworkError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        store = _serve_store(arguments)
    except OSError as error:
        return _cannot_meet(f"{error.strerror} ({errno.errorcode.get(error.errno or 0)})")
    try:
        torchrun(arguments)
        del store
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return 128 - failure.exitcode if failure.exitcode < 0 else failure.exitcode
    except DistNetworkError as error:
        return _cannot_meet(str(error).splitlines()[0])
    return 0


def _serve_store(arguments: list[str]) -> Any:
    """The store of machine 0, which torchrun finds in this process; None where this is another machine, or another rendezvous."""
    from torch.distributed.run import parse_args

    from hyena_ds.parallel.devices import serve_store

    options = parse_args(arguments)
    if options.rdzv_backend != "static" or options.rdzv_endpoint or options.standalone or options.node_rank != 0:
        return None
    return serve_store(options.master_addr, options.master_port)


def _cannot_meet(why: str) -> int:
    taken = "EADDRINUSE" in why
    cure = "choose another MASTER_PORT, the same on every machine" if taken else "look whether machine 0 has started"
    say(f"error: the machines cannot meet: {why}; {cure}")
    return LocalError.exit_code if taken else FAULT_CODE


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
