"""The filters of one optimizer step: evaluated by its first micro step, their gradients accumulated until its last.

    step opens --> micro step: filter k (first: evaluated; later: as it was), dk added up
               --> last micro step: dk goes through the filter's MLP, once
    step closes, and using it raises

A filter depends on parameters only, so this is exact however many micro steps follow, and however many tokens each has: the
first has the most, the others take a prefix. Where parameters stand still, in a
validation or a prediction, `HeldFilters` evaluates each filter once for all passes.

d channels of this rank, L context length.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hyena_ds.ops.large import empty_like


class FilterCache:
    """One slot a block. Open it before the first micro step and close it before the parameters change."""

    columns = 1
    """Filters are evaluated for multiples of so many positions."""

    def __init__(self, micro_steps: int = 1):
        self.micro_steps = micro_steps
        self.micro_step = 0
        self._slots: dict[int, FilterSlot] = {}
        self._closed = False

    def begin(self, micro_step: int) -> None:
        """Say which micro step the next forward and backward belong to."""
        self.micro_step = micro_step

    @property
    def keeps(self) -> bool:
        """Whether a later pass will need the filters again."""
        return self.micro_steps > 1

    @property
    def last(self) -> bool:
        """Whether this micro step's backward finishes the filters' gradients."""
        return self.micro_step == self.micro_steps - 1

    def slot(self, block: int) -> FilterSlot:
        """Raises RuntimeError when the step is over: its filters belong to parameters that have changed since."""
        if self._closed:
            raise RuntimeError(
                "a filter was asked of an optimizer step that is over; open a FilterCache for every step"
            )
        return self._slots.setdefault(block, FilterSlot())

    def close(self) -> None:
        """End the step; frees what is held."""
        self._slots.clear()
        self._closed = True


class HeldFilters(FilterCache):
    """Filters of parameters that stand still: evaluated once, for the longest context so far; shorter ones take a prefix.

    All passes must cut a sequence into the same number of slices. There is no backward.
    """

    columns = 32
    """Products of a few columns round otherwise than those of many; so a short filter is a longer one's prefix bit for bit,
    and no value depends on the sequences before."""

    @property
    def keeps(self) -> bool:
        """True: filters that are held stay."""
        return True

    @property
    def last(self) -> bool:
        """Raises RuntimeError: filters that are held have no gradients."""
        raise RuntimeError("a backward pass met filters that are held; open a FilterCache for every optimizer step")


class FilterSlot:
    """One block's filter k_dL in channel layout, and what has come of its gradient."""

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self._gradient: Tensor | None = None
        self._fresh = True

    def get(self, evaluate: Callable[[], Tensor], context_length: int, keep: bool) -> Tensor:
        """The filter of a context; evaluated when it is not held as far, and held when `keep`."""
        value = self.value
        if value is None or value.shape[1] < context_length:
            value = evaluate()
        self.value = value if keep else None
        return value[:, :context_length]

    def begin_gradient(self, k_dL: Tensor, last: bool) -> None:
        """A backward pass is about to add its part for every channel, each once it needs that channel of `k_dL` no more.

        In the `last` micro step nobody reads the filter afterwards: a first gradient takes its place.
        """
        self._fresh = self._gradient is None
        if self._gradient is None:
            self._gradient = k_dL if last else empty_like(k_dL)

    def add_gradient(self, channels: slice, dk_gL: Tensor) -> None:
        """Add one pass's gradient of some channels; of no more tokens than the first pass had."""
        assert self._gradient is not None
        if self._fresh:
            self._gradient[channels] = dk_gL
        else:
            self._gradient[channels, : dk_gL.shape[1]] += dk_gL

    def take_gradient(self) -> Tensor:
        """The sum over all passes; the slot is empty afterwards."""
        gradient = self._gradient
        assert gradient is not None
        self.value = self._gradient = None
        return gradient
