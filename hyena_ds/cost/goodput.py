"""How much of its time a run spends on steps that count, where machines fail now and then. Imports no torch.

    interval between checkpoints, what a save and a start take, time between failures --> share of the time, and the best interval

Failures are taken to come at random, at a constant rate. J. T. Daly, A higher order estimate of the optimum checkpoint interval
for restart dumps (Future Generation Computer Systems 22, 2006), gives the time that a run then takes; J. W. Young, A first order
approximation to the optimum checkpoint interval (Communications of the ACM 17, 1974), the interval that is best to first order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FAILURES, FAILED_IN_HOURS, FAILED_OF_DEVICES = 419, 54 * 24, 16_384
"""Unexpected interruptions of a run on H100s: Llama Team, The Llama 3 Herd of Models (2024), section 3.3.4."""
HOURS_BETWEEN_FAILURES = FAILED_IN_HOURS * FAILED_OF_DEVICES / FAILURES
"""Hours of one device from one failure to the next, on average."""
_MOST = 700.0
"""Exponents above this are no longer numbers: such a run makes no progress."""


@dataclass(frozen=True)
class Interrupted:
    """A run that saves and fails. All in seconds."""

    interval: float
    """Steps between two checkpoints take so long."""
    save: float
    """For which a save holds the steps."""
    start: float
    """From a failure to the next step: until it is seen, until the run is started, until it goes on. With it counts what is done
    twice because the newest checkpoint was not yet complete."""
    between_failures: float

    @property
    def share(self) -> float:
        """Share of the time that goes into steps that count.

        Daly's time of a run of T seconds of steps is M exp(R / M) (exp((t + d) / M) - 1) T / t, with interval t, save d,
        start R and M between failures.
        """
        M = self.between_failures
        segment = (self.interval + self.save) / M
        if segment + self.start / M > _MOST:
            return 0.0
        return self.interval / (M * math.exp(self.start / M) * math.expm1(segment))

    @property
    def saving(self) -> float:
        """Share of the time that saves take, where nothing fails."""
        return self.save / (self.interval + self.save)

    @property
    def best_interval(self) -> float:
        """Young's: the root of 2 d M."""
        return math.sqrt(2 * self.save * self.between_failures)
