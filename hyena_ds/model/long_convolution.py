"""The operator's long convolution with its skip term, through channel layout and back: whatever computes the gates around it.

    u_BDl --exchange, a group of channels at a time--> u_BgL --convolution with k, + skip u--> y_BgL --exchange--> y_BDl

A convolution that reads pieces gets u_BgL as it came, (B, g, P, l), and may give y_BgL so.

The exchange of a group overlaps the transforms of the one before.

B batch, l local length, L context length, D width, d = D / P, g some channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor

from hyena_ds.model.filter_cache import FilterSlot
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops import place
from hyena_ds.ops.convolution_backend import FFT, Convolution
from hyena_ds.ops.fft_convolution import channels_at_once
from hyena_ds.ops.large import empty_like
from hyena_ds.ops.sizes import AT_WORK_IN_TRANSFORMS

Groups = tuple[tuple[Tensor, ...], ...]
"""For each group of channels, the convolution's input in channel layout, or the spectra of input and filter."""


def convolution_forward(u_BDl: Tensor, k_dL: Tensor, skip_D: Tensor, call: ForwardPass) -> tuple[Tensor, Groups]:
    """(y, what the policy keeps of every group); y overwrites u where the policy does not keep it. Collective."""
    policy = call.policy
    y_BDl = empty_like(u_BDl) if policy.keep_convolution else u_BDl
    groups: list[tuple[Tensor, ...]] = []
    skip_d = skip_D[call.layout.exchange.own_channels(skip_D.shape[0])]

    def convolve(channels: slice, u_BgL: Tensor) -> tuple[Tensor]:
        convolution, skip_g1 = _of_group(call, skip_d[channels], u_BgL)
        if policy.keep_spectra and convolution.forward_with_spectra is not None:
            y_BgL, *spectra = convolution.forward_with_spectra(u_BgL, k_dL[channels])
            groups.append(tuple(spectra))
        else:
            y_BgL = convolution.forward(u_BgL, k_dL[channels])
            if policy.keep_convolution:
                groups.append((u_BgL,))
        return (y_BgL if skip_g1 is None else y_BgL.addcmul_(u_BgL, skip_g1),)

    with _skip_in_filter(call, k_dL, skip_d):
        call.exchange.through_channels((u_BDl,), (y_BDl,), convolve, _at_once(u_BDl, call), _takes_pieces(call))
    return y_BDl, tuple(groups)


def convolution_backward(
    dy_BDl: Tensor,
    u_BDl: Tensor | None,
    k_dL: Tensor,
    skip_D: Tensor,
    dskip_D: Tensor,
    slot: FilterSlot,
    call: ForwardPass,
    kept_groups: Groups,
    kept_y_BDl: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(y, du); du overwrites dy, and y, where it was not kept, u. The filter's gradient goes to `slot`. Collective."""
    own = call.layout.exchange.own_channels(skip_D.shape[0])
    skip_d, dskip_d = skip_D[own], dskip_D[own]
    at_once = _at_once(dy_BDl, call)
    slot.begin_gradient(k_dL, call.filters.last)

    def correlate(channels: slice, dy_BgL: Tensor, u_BgL: Tensor | None = None) -> tuple[Tensor, ...]:
        of_group = kept_groups[channels.start // at_once] if u_BgL is None else (u_BgL,)
        convolution, skip_g1 = _of_group(call, skip_d[channels], dy_BgL)
        if len(of_group) == 2 and convolution.backward_from_spectra is not None:
            du_BgL, dk_gL = convolution.backward_from_spectra(dy_BgL, *of_group)
            y_BgL = None
        else:
            du_BgL, dk_gL, y_BgL = convolution.backward(dy_BgL, of_group[0], k_dL[channels], u_BgL is not None)
        slot.add_gradient(channels, dk_gL)
        dskip_d[channels] = dk_gL[:, 0]  # the skip is a filter of lag zero
        if skip_g1 is not None:
            du_BgL.addcmul_(dy_BgL, skip_g1)
            if y_BgL is not None:
                y_BgL.addcmul_(of_group[0], skip_g1)
        return (du_BgL,) if y_BgL is None else (du_BgL, y_BgL)

    buffers = (dy_BDl,) if u_BDl is None else (dy_BDl, u_BDl)
    with _skip_in_filter(call, k_dL, skip_d, restored=not call.filters.last):
        call.exchange.through_channels(buffers, buffers, correlate, at_once, _takes_pieces(call))
    y_BDl = kept_y_BDl if u_BDl is None else u_BDl
    assert y_BDl is not None
    return y_BDl, dy_BDl


def _skip_in_filter(
    call: ForwardPass, k_dL: Tensor, skip_d: Tensor, restored: bool = True
) -> AbstractContextManager[None]:
    """On a device the skip is the part of the filter that it is, of lag zero, while the convolution runs."""
    if not place.on_device(k_dL.device) or _with_skip(call) is not None:
        return nullcontext()
    return _added_at_lag_zero(k_dL, skip_d.unsqueeze(1), restored)


@contextmanager
def _added_at_lag_zero(k_dL: Tensor, skip_d1: Tensor, restored: bool) -> Iterator[None]:
    lag_zero_d1 = k_dL[:, :1].clone()
    k_dL[:, :1] += skip_d1
    yield
    if restored:  # else the filter's gradient is in its place
        k_dL[:, :1] = lag_zero_d1


def _with_skip(call: ForwardPass) -> Callable[[Tensor], Convolution] | None:
    """The kernels' own convolution, which adds the skip, where they have one and no other back end is wanted."""
    return call.kernels.fft_with_skip if call.kernels is not None and _back_end(call) is FFT else None


def _back_end(call: ForwardPass) -> Convolution:
    """The call's, if it takes sequences of this length."""
    return call.convolution if call.convolution.takes(call.layout.context_length) else FFT


def _takes_pieces(call: ForwardPass) -> bool:
    return _with_skip(call) is not None or _back_end(call).takes_pieces


def _of_group(call: ForwardPass, skip_g: Tensor, like: Tensor) -> tuple[Convolution, Tensor | None]:
    """(the convolution, the skip (g, 1), or (g, 1, 1) beside pieces, that is still to be added)."""
    with_skip = _with_skip(call)
    if with_skip is not None:
        return with_skip(skip_g), None
    return _back_end(call), None if place.on_device(skip_g.device) else skip_g.view(-1, *[1] * (like.dim() - 2))


def _at_once(x_BDl: Tensor, call: ForwardPass) -> int:
    B, D, _ = x_BDl.shape
    P = call.layout.exchange.size
    L, device = call.layout.context_length, x_BDl.device
    most = -(
        -channels_at_once(B, D // P, L, device)
        // max(call.pieces(device, AT_WORK_IN_TRANSFORMS), _back_end(call).pieces)
    )
    return min(most, channels_at_once(B, D // P, L, device, P > 1))
