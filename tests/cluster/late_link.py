"""A link that carries every frame late and no faster than it may: what `tc netem` does, on kernels that have none.

    TAP --frame--> a queue, each frame with the time when it is due --> TAP, and the same the other way

The kernel cuts what it sends to a TAP into frames of the MTU and writes their checksums, as it does for a card that can
do neither. So no offload of the cards beyond has to be switched off. The link is there as long as this program runs:

    python -m tests.cluster.late_link NAME_OF_ONE_TAP NAME_OF_THE_OTHER DELAY_IN_SECONDS BITS_PER_SECOND
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

UP = "up"
"""What is printed once both TAPs are there."""

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_LARGEST_FRAME = 1 << 16
_QUEUE_SECONDS = 0.4
"""What a full queue takes to send; a frame that comes then is lost."""
_FRAMES_AT_ONCE = 64


class Way:
    """One direction of the link."""

    def __init__(self, source: int, sink: int, delay: float, rate: float):
        self.source, self._sink, self._delay, self._rate = source, sink, delay, rate
        self._queue: deque[tuple[float, bytes]] = deque()
        self._free = 0.0
        """When the last frame that was taken is sent."""

    @property
    def due(self) -> float:
        """When the next frame arrives."""
        return self._queue[0][0] if self._queue else float("inf")

    def take(self, now: float) -> None:
        """Whatever has been sent."""
        for _ in range(_FRAMES_AT_ONCE):  # the other way gets its turn
            try:
                frame = os.read(self.source, _LARGEST_FRAME)
            except BlockingIOError:
                return
            begins = max(now, self._free)
            if begins - now < _QUEUE_SECONDS:
                self._free = begins + 8 * len(frame) / self._rate
                self._queue.append((self._free + self._delay, frame))

    def give(self, now: float) -> None:
        """Whatever is due."""
        while self.due <= now:
            with contextlib.suppress(OSError):  # that end is not up yet: a link loses the frame
                os.write(self._sink, self._queue.popleft()[1])


def carry(ways: list[Way]) -> None:
    """For ever."""
    while True:
        wait = min(way.due for way in ways) - time.monotonic()
        ready = select.select([way.source for way in ways], [], [], None if wait == float("inf") else max(0.0, wait))[0]
        now = time.monotonic()
        for way in ways:
            if way.source in ready:
                way.take(now)
            way.give(now)


def tap(name: str) -> int:
    """A new TAP of this network namespace: what is read was sent to it, and what is written arrives from it."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return device


def main(names: list[str], delay: float, rate: float) -> None:
    """The link between two new TAPs."""
    one, other = map(tap, names)
    print(UP, flush=True)
    carry([Way(one, other, delay, rate), Way(other, one, delay, rate)])


if __name__ == "__main__":
    main(sys.argv[1:3], float(sys.argv[3]), float(sys.argv[4]))
