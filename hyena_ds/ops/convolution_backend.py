"""The long convolution's back ends behind one value, and the choice between them at the start of a run.

    wanted, device --found?--> cudnn.ops.fft_causal_conv1d --agrees with FFT?--> Choice(convolution, why)
                   --found?--> ops/triton/long_convolution.py --agrees with FFT?--> and under auto, faster?

FFT, the portable functions of fft_convolution.py, is the default and the oracle. The two others are used only where a check at
start-up finds the same output and gradients, and the fused one, unless it is asked for, where it takes less time than what
would run in its place. Neither ran on a GPU here. cuDNN's wrapper, the choice and the refusals are tested on a CPU with a
stand-in for the package, read from nvidia-cudnn-frontend 1.28.0 and 1.32.0; the fused kernels in Triton's interpreter.

B batch, g channels, L context length.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hyena_ds.errors import UserError
from hyena_ds.ops import fft_convolution
from hyena_ds.ops.start_check import Unusable, device_seconds, difference, first_line, is_cuda

Wanted = Literal["auto", "fft", "cudnn", "fused"]


@dataclass(frozen=True)
class Convolution:
    """A causal convolution in float32 on as many channels as the caller gives; results may be views, never inputs.

    Inputs may be bfloat16; a filter and its gradient are float32, other results float32 or of the input's type.
    """

    name: str
    forward: Callable[[Tensor, Tensor], Tensor]
    """(u_BgL, k_gL) -> y_BgL."""
    backward: Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor | None]]
    """(dy_BgL, u_BgL, k_gL, again) -> (du_BgL, dk_gL, and y_BgL once more if `again`)."""
    forward_with_spectra: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
    """(u_BgL, k_gL) -> (y_BgL, and the two tensors that spare `backward_from_spectra` their transforms), if it can."""
    backward_from_spectra: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    """(dy_BgL and those two) -> (du_BgL, dk_gL)."""
    shortest: int = 1
    longest: int = sys.maxsize
    """Context lengths that it is used for; others go through FFT."""
    pieces: int = 1
    """Into how many groups it wants the channels cut that FFT takes at once: those that fill a device, for less memory."""
    takes_pieces: bool = False
    """Whether inputs, but no filter, may be (B, g, P, l), P pieces of a sequence, each with its tokens side by side; results may
    then be so too."""

    def takes(self, context_length: int) -> bool:
        """Whether it is used for sequences of so many tokens."""
        return self.shortest <= context_length <= self.longest


FFT = Convolution(
    "fft",
    fft_convolution.causal_convolution,
    fft_convolution.causal_convolution_backward,
    fft_convolution.causal_convolution_with_spectra,
    fft_convolution.causal_convolution_backward_from_spectra,
)


class Choice(NamedTuple):
    """A back end and, in a few words, why it is this one."""

    convolution: Convolution
    why: str


TOLERANCE = 1e-5
"""Largest difference from FFT, relative to the largest value, that the check at start-up lets pass."""
CHECKED_LENGTHS = (4_096, 5_001, 32_768, 40_001)
"""cuDNN has one kernel for filters of up to 16,384 taps and one for longer ones, and pads what is no power of two."""
_LONGEST = 1 << 23
"""Tokens of cuDNN's longest convolution on every device; newer ones double it."""
CHECKED_FUSED = (16_384, 20_001)
"""Besides the run's own: one that fills its points, and one that does not."""
_CHECKED_PIECES = 3
"""In which a sequence that can be cut into so many is checked, where a convolution takes pieces."""
_OLDEST_CUDNN = (9, 26, 0)
_INSTALL = "install nvidia-cudnn-frontend 1.28.0 or newer"


_TIMED_CHANNELS = 16
"""Channels of the longest context that a timing takes: enough programs for a card, and little memory."""


def choose_convolution(
    wanted: Wanted,
    device: torch.device,
    lengths: Iterable[int] = (),
    with_skip: Callable[[Tensor], Convolution] | None = None,
    seconds: Callable[[Callable[[], object]], float] = device_seconds,
) -> Choice:
    """The back end for `device` of sequences of `lengths`; `with_skip` is what kernels have in the place of FFT, if any.

    `seconds` says how long some work takes the device. Raises UserError when cuDNN's or the fused convolution is asked for
    and is missing, too old, wrong or made for other lengths.
    """
    lengths = [*lengths]
    if wanted == "fft":
        return Choice(FFT, "as configured")
    if wanted != "auto":
        try:
            return _checked_cudnn(device, lengths) if wanted == "cudnn" else _checked_fused(device, lengths)
        except Unusable as problem:
            raise UserError(
                f"convolution: found {problem}, wanted {wanted}; {problem.cure}, or set convolution: auto"
            ) from problem
    if not is_cuda(device):
        return Choice(FFT, "no CUDA device")
    convolution, why = _or_fft(lambda: _checked_cudnn(device, lengths))
    other = convolution
    if convolution is FFT and with_skip is not None:
        other = with_skip(torch.zeros(_TIMED_CHANNELS, device=device))
    fused = _or_fft(lambda: _faster_fused(device, lengths, other, seconds))
    return Choice(convolution, f"{why}; {fused.why}") if fused.convolution is FFT else fused


def _or_fft(checked: Callable[[], Choice]) -> Choice:
    try:
        return checked()
    except Unusable as problem:
        return Choice(FFT, str(problem))


def _checked_cudnn(device: torch.device, lengths: list[int]) -> Choice:
    if not is_cuda(device):
        raise Unusable("no CUDA device", "train on a machine with one")
    convolution = cudnn_convolution(_find_cudnn())
    at = sorted({*CHECKED_LENGTHS, *filter(convolution.takes, lengths)})
    return Choice(convolution, _agreement(convolution, "cuDNN", "install another cuDNN", device, at))


def _checked_fused(device: torch.device, lengths: list[int]) -> Choice:
    """On a CPU too where Triton interprets its kernels, at the lengths of the run alone."""
    try:
        from hyena_ds.ops.triton.long_convolution import FUSED, is_interpreted
    except ImportError as error:
        raise Unusable(
            f"no triton that can be imported ({first_line(error)})", "pip install 'hyena-ds[triton]'"
        ) from error
    if not is_cuda(device) and not is_interpreted():
        raise Unusable("no CUDA device", "train on a machine with one")
    own = [*filter(FUSED.takes, lengths)]
    if not own:
        raise Unusable(
            f"no context of {FUSED.shortest:,} to {FUSED.longest:,} tokens, which the fused convolution is made for",
            "set convolution: fft",
        )
    at = sorted({*own, *(CHECKED_FUSED if is_cuda(device) else ())})
    return Choice(FUSED, _agreement(FUSED, "fused convolution", "report it", device, at))


def _faster_fused(
    device: torch.device, lengths: list[int], other: Convolution, seconds: Callable[[Callable[[], object]], float]
) -> Choice:
    """The fused convolution, if at the longest context that it takes it needs less time than `other`."""
    fused, agreement = _checked_fused(device, lengths)
    longest = max(filter(fused.takes, lengths))
    u, dy, k = _random_signals(1, _TIMED_CHANNELS, longest, device)

    def both_ways(convolution: Convolution) -> Callable[[], object]:
        return lambda: (convolution.forward(u, k), convolution.backward(dy, u, k, True))

    share = seconds(both_ways(fused)) / seconds(both_ways(other))
    beside = f"{share:.2f} of the time of {other.name}'s at {longest:,} tokens"
    if not share < 1.0:
        raise Unusable(f"a fused convolution that takes {beside}", "set convolution: fft")
    return Choice(fused, f"{agreement}, and {beside}")


def cudnn_convolution(fft_causal_conv1d: Callable[[Tensor, Tensor], Tensor]) -> Convolution:
    """A Convolution of `fft_causal_conv1d(x_BgL, weight_gL)`, whose weight[0] multiplies the current sample.

    Its forward reserves for its backward about as much as both spectra take, for as long as autograd lives: nothing is
    kept, and backward computes forward again. The reserve is of the caller's group of channels (`channels_at_once`).
    It pads by itself. It lays gradients out by the strides of its inputs but writes them as contiguous: backward gives
    it contiguous ones.
    """

    def forward(u_BgL: Tensor, k_gL: Tensor) -> Tensor:
        u_BgL = u_BgL.float()
        with torch.no_grad():
            return fft_causal_conv1d(u_BgL, k_gL)

    def backward(dy_BgL: Tensor, u_BgL: Tensor, k_gL: Tensor, again: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        u_BgL, dy_BgL = u_BgL.float(), dy_BgL.float()
        u_BgL, k_gL = (x.contiguous().detach().requires_grad_() for x in (u_BgL, k_gL))
        with torch.enable_grad():
            y_BgL = fft_causal_conv1d(u_BgL, k_gL)
            du_BgL, dk_gL = torch.autograd.grad(y_BgL, (u_BgL, k_gL), dy_BgL)
        return du_BgL, dk_gL, y_BgL.detach() if again else None

    return Convolution("cudnn", forward, backward, longest=_LONGEST)


def _find_cudnn() -> Callable[[Tensor, Tensor], Tensor]:
    """`fft_causal_conv1d` of the installed package. Whatever goes wrong in a package that is not required is a reason."""
    try:
        version = import_module("cudnn").backend_version()
    except Exception as error:
        raise Unusable(f"no nvidia-cudnn-frontend that can be used ({first_line(error)})", _INSTALL) from error
    found = (version // 10_000, version // 100 % 100, version % 100)
    if found < _OLDEST_CUDNN:
        raise Unusable(f"cuDNN {_dotted(found)}, older than {_dotted(_OLDEST_CUDNN)}", "install a newer cuDNN")
    try:
        convolve: Callable[[Tensor, Tensor], Tensor] = import_module("cudnn.ops").fft_causal_conv1d
        return convolve
    except (ImportError, AttributeError) as error:
        raise Unusable(f"no fft_causal_conv1d in nvidia-cudnn-frontend ({first_line(error)})", _INSTALL) from error


def _random_signals(batch: int, channels: int, length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(u_BgL, dy_BgL, k_gL): a function of the length."""
    generator = torch.Generator().manual_seed(length)
    shapes = (batch, channels, length), (batch, channels, length), (channels, length)
    u, dy, k = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    return u, dy, k


def _in_pieces(x_BgL: Tensor) -> Tensor:
    """(B, g, P, l), as it comes from other ranks."""
    pieces_PBgl: Tensor = x_BgL.unflatten(2, (_CHECKED_PIECES, -1)).permute(2, 0, 1, 3).contiguous()
    return pieces_PBgl.permute(1, 2, 0, 3)


def _agreement(convolution: Convolution, what: str, cure: str, device: torch.device, lengths: Iterable[int]) -> str:
    """How far any result is from FFT's, at any length, relative to the largest value of each. Raises Unusable if too far."""
    names = ("output", "gradient of the input", "gradient of the filter", "output in backward")
    worst = 0.0
    for length in lengths:
        u, dy, k = _random_signals(2, 3, length, device)
        wanted = (FFT.forward(u, k), *FFT.backward(dy, u, k, True))
        if convolution.takes_pieces and length % _CHECKED_PIECES == 0:
            u, dy = _in_pieces(u), _in_pieces(dy)
        try:
            results = (convolution.forward(u, k), *convolution.backward(dy, u, k, True))
            found = [x.flatten(2) if x is not None and x.dim() == 4 else x for x in results]
            differences = [difference(a, b) for a, b in zip(found, wanted, strict=True)]
        except Exception as error:
            raise Unusable(f"a {what} that fails at {length:,} tokens ({first_line(error)})", cure) from error
        for name, far_off in zip(names, differences, strict=True):
            if not far_off <= TOLERANCE:  # NaN too
                far = f"{far_off:.0e} from fft's at {length:,} tokens, more than {TOLERANCE:.0e}"
                raise Unusable(f"{what}'s {name} {far}", cure)
        worst = max(worst, *differences)
    return f"{worst:.0e} from fft at most"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
