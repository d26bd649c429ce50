"""The long convolution's back ends behind one value, and the choice between them at the start of a run.

    wanted, device --found?--> cudnn.ops.fft_causal_conv1d --agrees with FFT?--> Choice(convolution, why)

FFT, the portable functions of fft_convolution.py, is the default and the oracle. cuDNN's convolution is used only where a
check at start-up finds the same output and gradients. It never ran on a GPU here: its wrapper, the choice and the
refusals are tested on a CPU with a stand-in for the package, read from nvidia-cudnn-frontend 1.28.0 and 1.32.0.

B batch, g channels, L context length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hyena_ds.errors import UserError
from hyena_ds.ops import fft_convolution
from hyena_ds.ops.start_check import Unusable, difference, first_line, is_cuda

Wanted = Literal["auto", "fft", "cudnn"]


@dataclass(frozen=True)
class Convolution:
    """A causal convolution in float32 on as many channels as the caller gives; results may be views, never inputs.

    Inputs may be bfloat16; a filter and all results are float32.
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
_OLDEST_CUDNN = (9, 26, 0)
_INSTALL = "install nvidia-cudnn-frontend 1.28.0 or newer"


def choose_convolution(wanted: Wanted, device: torch.device, lengths: Iterable[int] = ()) -> Choice:
    """The back end for `device`; `lengths` are context lengths to check cuDNN at besides CHECKED_LENGTHS.

    Raises UserError when cuDNN is asked for and is missing, too old or wrong.
    """
    if wanted == "fft":
        return Choice(FFT, "as configured")
    try:
        if not is_cuda(device):
            raise Unusable("no CUDA device", "train on a machine with one")
        convolution = cudnn_convolution(_find_cudnn())
        worst = _worst_difference(convolution, device, sorted({*CHECKED_LENGTHS, *lengths}))
    except Unusable as problem:
        if wanted == "cudnn":
            raise UserError(
                f"convolution: found {problem}, wanted cudnn; {problem.cure}, or set convolution: auto"
            ) from problem
        return Choice(FFT, str(problem))
    return Choice(convolution, f"{worst:.0e} from fft at most")


def cudnn_convolution(fft_causal_conv1d: Callable[[Tensor, Tensor], Tensor]) -> Convolution:
    """A Convolution of `fft_causal_conv1d(x_BgL, weight_gL)`, whose weight[0] multiplies the current sample.

    Its forward reserves for its backward about as much as both spectra take, for as long as autograd lives: nothing is
    kept, and backward computes forward again. The reserve is of the caller's group of channels (`channels_at_once`).
    It pads by itself. It lays gradients out by the strides of its inputs but writes them as contiguous: backward gives
    it contiguous ones.
    """

    def forward(u_BgL: Tensor, k_gL: Tensor) -> Tensor:
        if u_BgL.shape[-1] > _LONGEST:
            return FFT.forward(u_BgL, k_gL)
        u_BgL = u_BgL.float()
        with torch.no_grad():
            return fft_causal_conv1d(u_BgL, k_gL)

    def backward(dy_BgL: Tensor, u_BgL: Tensor, k_gL: Tensor, again: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        if u_BgL.shape[-1] > _LONGEST:
            return FFT.backward(dy_BgL, u_BgL, k_gL, again)
        u_BgL, dy_BgL = u_BgL.float(), dy_BgL.float()
        u_BgL, k_gL = (x.contiguous().detach().requires_grad_() for x in (u_BgL, k_gL))
        with torch.enable_grad():
            y_BgL = fft_causal_conv1d(u_BgL, k_gL)
            du_BgL, dk_gL = torch.autograd.grad(y_BgL, (u_BgL, k_gL), dy_BgL)
        return du_BgL, dk_gL, y_BgL.detach() if again else None

    return Convolution("cudnn", forward, backward)


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


def _worst_difference(convolution: Convolution, device: torch.device, lengths: Iterable[int]) -> float:
    """The largest difference of any result from FFT's, at every length, relative to the largest value of each."""
    names = ("output", "gradient of the input", "gradient of the filter", "output in backward")
    worst, cure = 0.0, "install another cuDNN"
    for length in lengths:
        generator = torch.Generator().manual_seed(length)
        u, dy, k = (
            torch.randn(shape, generator=generator).to(device)
            for shape in ((2, 3, length), (2, 3, length), (3, length))
        )
        wanted = (FFT.forward(u, k), *FFT.backward(dy, u, k, True))
        try:
            found = (convolution.forward(u, k), *convolution.backward(dy, u, k, True))
            differences = [difference(a, b) for a, b in zip(found, wanted, strict=True)]
        except Exception as error:
            raise Unusable(f"a cuDNN that fails at {length:,} tokens ({first_line(error)})", cure) from error
        for name, far_off in zip(names, differences, strict=True):
            if not far_off <= TOLERANCE:  # NaN too
                far = f"{far_off:.0e} from fft's at {length:,} tokens, more than {TOLERANCE:.0e}"
                raise Unusable(f"cuDNN's {name} {far}", cure)
        worst = max(worst, *differences)
    return worst


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
