"""How much one call of a kernel gets: points of a transform, channels of a group, tokens of a tile or a chunk. Imports no torch.

What a step computes is cut by these numbers, and what it needs (cost/) is counted by them.

B batch, L context length, n FFT length.
"""

from __future__ import annotations

from functools import lru_cache

_GROUP_ELEMENTS = 1 << 21
"""Elements of the padded signal that one group of channels should hold on a CPU (8 MiB)."""
_DEVICE_GROUP_ELEMENTS = 1 << 29
_FEWEST_TRANSFORMS = 2
"""On a CPU a single long transform runs at a quarter to a third of the speed of two (measured on an Intel Xeon)."""
_MOST_CHANNELS, _MOST_DEVICE_CHANNELS = 64, 256
_FEWEST_GROUPS = 4
"""Groups of channels into which an exchange is cut at least, so that it overlaps the work."""
_EXCHANGED_ELEMENTS = 1 << 21
"""Elements that are exchanged without work in between, on a CPU: 8 MiB."""

LARGE = 1 << 22
"""Bytes from which a tensor on a CPU gets a block of memory of its own (large.py)."""

GIVEN_BACK = 1 << 24
"""Bytes from which the C library gives a tensor back to the kernel at once, as ranks are started
(runtime/local_ranks.py)."""

_CACHED_ELEMENTS = 1 << 18
"""Elements of the widest intermediate result of a tile: 1 MiB of float32, a core's second-level cache."""
_FEWEST_TOKENS = 64
_DEVICE_ELEMENTS = 1 << 30
"""On an accelerator a tile only bounds memory."""
_ALIGNED_TOKENS = 256
"""On an accelerator a tile has whole multiples of so many tokens, so that no row of it begins off a boundary of its memory."""


AT_WORK = 15
"""Activation tensors, B x l x D float32, that the operator's tiles work with on a device when all tokens are done at once."""
AT_WORK_IN_MLP, AT_WORK_IN_TRANSFORMS, AT_WORK_IN_FILTER = 10, 16, 4
"""Likewise."""
AT_WORK_IN_KERNELS = 6
"""Likewise, of either half-block by Triton kernels in bfloat16."""
LOSS_PIECES = 8
"""Into how many pieces the loss is cut on a device: all that is kept is live then."""
_POWER_OF_TWO = 1.06
"""How much longer a transform of a device may be to have a power of two points."""

_CHUNK_ELEMENTS = 1 << 18
"""Elements of the widest result of the filter's MLP for a chunk of tokens, on a CPU."""
_DEVICE_CHUNK_ELEMENTS = 1 << 28


def pieces_of_a_block(kept: int, blocks_after: int, at_work: int = AT_WORK) -> int:
    """Into how many pieces a block cuts on a device what it could do at once: less memory for more kernels.

    Where a policy keeps `kept` activation tensors a block, the block works with no more than that, besides those that the
    blocks after it do not hold when it is at work: most is kept when the last one is, which is cut finest.
    """
    return max(-(-at_work // (kept * (blocks_after + 1))), 2 if blocks_after == 0 else 1)


@lru_cache
def good_fft_length(minimum: int) -> int:
    """The smallest 2^a 3^b 5^c that is at least `minimum`: other lengths cost an FFT 6 to 8 times as much."""
    exponents = range(minimum.bit_length())
    odd = (3**b * 5**c for b in exponents for c in exponents)
    best: int = min(factor << (-(-minimum // factor) - 1).bit_length() for factor in odd)  # doubled until it is enough
    return best


@lru_cache
def right_angle_points(context_length: int) -> int:
    """Points of the complex transforms of a device, at least L: a power of two where it is at most 6 % longer, whose kernels are
    the fastest."""
    best, power = good_fft_length(context_length), 1 << (context_length - 1).bit_length()
    return power if power <= _POWER_OF_TWO * best else best


@lru_cache
def fft_length(context_length: int, on_cpu: bool = True) -> int:
    """Points of real transforms: at least 2L - 1, so that nothing wraps into the first L. On a device, twice those of the complex
    ones that take their place."""
    return good_fft_length(2 * context_length - 1) if on_cpu else 2 * right_angle_points(context_length)


def channels_of_a_group(batch: int, channels: int, context_length: int, on_cpu: bool, cut: bool = False) -> int:
    """Channels that one call should get: enough for the FFT to run batched, few enough for the spectra to stay small.

    Of a sequence that is `cut` over ranks there are several groups, so that one is on its way while another is worked on.
    """
    elements = _GROUP_ELEMENTS if on_cpu else _DEVICE_GROUP_ELEMENTS
    n = fft_length(context_length, on_cpu)
    transforms = max(_FEWEST_TRANSFORMS, elements // n)
    most = max(-(-channels // _FEWEST_GROUPS), _FEWEST_TRANSFORMS if on_cpu else 1) if cut else channels
    return max(1, min(channels, most, transforms // batch, _MOST_CHANNELS if on_cpu else _MOST_DEVICE_CHANNELS))


def channels_of_an_exchange(batch: int, channels: int, context_length: int, on_cpu: bool) -> int:
    """Channels that go to other ranks at once without work in between: what is under way is small beside the whole."""
    elements = _EXCHANGED_ELEMENTS if on_cpu else _DEVICE_GROUP_ELEMENTS
    return max(1, min(-(-channels // 8), elements // (batch * context_length)))


def tokens_of_a_tile(widest: int, on_cpu: bool) -> int:
    """Tokens whose widest intermediate result, of `widest` channels, stays in a core's cache."""
    if not on_cpu:
        return -(-_DEVICE_ELEMENTS // (widest * _ALIGNED_TOKENS)) * _ALIGNED_TOKENS
    return max(_FEWEST_TOKENS, _CACHED_ELEMENTS // widest)


def tokens_of_a_chunk(widest: int, on_cpu: bool) -> int:
    """Tokens that the implicit filter is evaluated for at once; its widest result has `widest` channels."""
    return max(_FEWEST_TOKENS, (_CHUNK_ELEMENTS if on_cpu else _DEVICE_CHUNK_ELEMENTS) // widest)
