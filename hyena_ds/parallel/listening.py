"""Where a run's own sockets listen: on loopback when all ranks are on this machine, else where rank 0 is called.

Of torch's store and the heartbeat. gloo and NCCL are told an interface in parallel/devices.py. No torch.
"""

from __future__ import annotations

import os
import random
import socket
from ipaddress import ip_address
from pathlib import Path

from hyena_ds.parallel.nodes import ranks_said_here

LOOPBACK = "127.0.0.1"
_HANDED_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Linux names there the ports that it gives to connections, the first and the last."""
_LOWEST, _TRIES = 10_240, 16
"""The lowest port that is tried, and how many are."""
_BACKLOG = 1024


def all_ranks_here() -> bool:
    """Whether all ranks run on this machine, as far as their launcher's variables say."""
    ranks = int(os.environ.get("WORLD_SIZE") or 1)
    return (ranks_said_here() or 1) == ranks or is_loopback(os.environ.get("MASTER_ADDR") or LOOPBACK)


def is_loopback(address: str) -> bool:
    """Whether only this machine can mean itself by it. A name may be loopback here, and a proper address elsewhere."""
    try:
        return ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return address == "localhost"


def meeting_address() -> str:
    """The address at which ranks reach rank 0."""
    return LOOPBACK if all_ranks_here() else os.environ["MASTER_ADDR"]


def interface_to(address: str) -> str | None:
    """Name of the network interface over which this machine reaches `address`, where that can be known.

    A name that means loopback here is no answer: other machines would not come that way.
    """
    import psutil

    try:
        family, kind, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:  # a datagram socket's connect sends nothing
            probe.connect(target)
            own = str(probe.getsockname()[0])
    except OSError:
        return None
    if is_loopback(own) and not is_loopback(address):
        return None
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, addresses in interfaces if own in (each.address for each in addresses)), None)


def listen(address: str, port: int = 0) -> socket.socket:
    """A socket that listens on the one address that is called `address`, on all where this machine cannot tell which it is.

    Raises OSError where the port is taken or not allowed.
    """
    only = _own_address(address)
    if only is not None:
        return socket.create_server(
            (only, port), family=socket.AF_INET6 if ":" in only else socket.AF_INET, backlog=_BACKLOG
        )
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=_BACKLOG)


def free_port() -> int:
    """A port of loopback on which nothing listens just now.

    It is none of those that the system hands out to every connection: of these, one may be gone before it is listened on.
    """
    first = _first_handed_out()
    for _ in range(_TRIES if first > _LOWEST else 0):
        try:
            with listen(LOOPBACK, random.SystemRandom().randrange(_LOWEST, first)) as probe:
                return int(probe.getsockname()[1])
        except OSError:  # taken, or not allowed
            continue
    with listen(LOOPBACK) as probe:
        return int(probe.getsockname()[1])


def _first_handed_out() -> int:
    try:
        return int(_HANDED_OUT.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # another system than Linux
        return 0


def _own_address(address: str) -> str | None:
    """The address of this machine that others mean by `address`, where it is one and not in doubt."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)}
        (only,) = found
        family = socket.AF_INET6 if ":" in only else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((only, 0))
    except (OSError, ValueError):  # unknown; several; or a gateway's, say, and none of this machine's
        return None
    # A host's own name is often 127.0.1.1 there, and a proper address everywhere else.
    return None if is_loopback(only) and not is_loopback(address) else only
