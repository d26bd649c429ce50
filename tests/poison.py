"""An objective that goes wrong on sequences that hold a chosen token, as real ones do on a sample: in every other respect
it is the trainer's."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.tasks.next_token import NextToken


class PoisonedLoss(NextToken):
    """The loss of a slice that holds `token` is infinite; what it sends back is finite."""

    token: ClassVar[int]

    def loss(self, token_ids_Bl: Tensor, targets_Bl: Tensor, call: ForwardPass) -> tuple[Tensor, Tensor]:
        loss, scored = super().loss(token_ids_Bl, targets_Bl, call)
        return (self.poisoned(loss) if bool((token_ids_Bl == self.token).any()) else loss), scored

    def poisoned(self, loss: Tensor) -> Tensor:
        return loss + math.inf


class PoisonedGradient(PoisonedLoss):
    """The loss stays finite, but what it sends back is NaN."""

    def poisoned(self, loss: Tensor) -> Tensor:
        return loss + (loss * 0).sqrt()


def poisoned_by(token: int, gradient: bool) -> Any:
    """An objective for sequences that hold `token`."""
    return type("Poisoned", (PoisonedGradient if gradient else PoisonedLoss,), {"token": token})
