"""Convolved one input at a time, or all at once in float64 by the definition: the same, at every length and tile boundary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyena_ds.ops import online_convolution
from hyena_ds.ops.online_convolution import BLOCK, OnlineConvolution, OnlineFilter, continuation

R = 3
TOLERANCE = 1e-5


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[-1]))


def direct(u_BRL: Tensor, k_RT: Tensor, first: int, last: int) -> Tensor:
    """Outputs first .. last - 1 by the definition, in float64; u is zero from its end on."""
    u_BRL, k_RT = u_BRL.double(), k_RT.double()
    outputs = []
    for t in range(first, last):
        s = torch.arange(min(t + 1, u_BRL.shape[-1]))
        outputs.append((u_BRL[..., s] * k_RT[:, t - s]).sum(-1))
    return torch.stack(outputs, -1)


def online(u_BRN: Tensor, filters: OnlineFilter, ahead_BRN: Tensor) -> Tensor:
    """Outputs of every position, each asked for before the next input is written."""
    convolution = OnlineConvolution(filters, list(ahead_BRN))
    outputs = []
    for position, u_BR in enumerate(u_BRN.unbind(-1)):
        assert convolution.position == position
        place = convolution.place
        convolution.inputs[place].copy_(u_BR)
        outputs.append(convolution.now[place] + filters.k_RN[:, 0] * u_BR)
        convolution.advance()
    return torch.stack(outputs, -1)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_every_length_beside_the_definition(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, so that short lengths have tiles of every width, whole ones and such that the end cuts."""
    monkeypatch.setattr(online_convolution, "BLOCK", block)
    for N in range(1, 70):
        u_BRN, k_RN = random(2, R, N), random(R, N)
        found = online(u_BRN, OnlineFilter(k_RN), torch.zeros(2, R, N))
        wanted = direct(u_BRN, k_RN, 0, N)
        assert (found - wanted).abs().max() <= TOLERANCE * wanted.abs().max(), N


@pytest.mark.parametrize("N", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1, 16 * BLOCK, 16 * BLOCK + 5])
def test_lengths_around_the_real_block_beside_the_definition(N: int) -> None:
    u_BRN, k_RN = random(1, R, N), random(R, N)
    wanted = direct(u_BRN, k_RN, 0, N)
    assert (
        online(u_BRN, OnlineFilter(k_RN), torch.zeros(1, R, N)) - wanted
    ).abs().max() <= TOLERANCE * wanted.abs().max()


def test_one_filter_serves_one_decoding_after_the_other() -> None:
    """The spectra that the first has left, for the tiles that come often, are those that the second needs."""
    N = 16 * BLOCK
    filters, u_BRN = OnlineFilter(random(R, N)), random(1, R, N)
    first, second = (online(u_BRN, filters, torch.zeros(1, R, N)) for _ in range(2))
    assert filters._spectra and torch.equal(first, second)


@pytest.mark.parametrize("L", [1, 2, 3, 64, 101])
@pytest.mark.parametrize("N", [1, 2, 63, 100])
def test_a_prompt_gives_to_later_positions_what_the_definition_says(L: int, N: int) -> None:
    u_BRL, k_RT = random(2, R, L), random(R, L + N + 3)
    wanted = direct(u_BRL, k_RT, L, L + N)
    assert (continuation(u_BRL, k_RT, N) - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


def test_prompt_and_what_follows_together_are_one_convolution() -> None:
    L, N = 37, 3 * BLOCK + 7
    u_BRT, k_RT = random(2, R, L + N), random(R, L + N)
    ahead = continuation(u_BRT[..., :L], k_RT, N)
    found = online(u_BRT[..., L:], OnlineFilter(k_RT[:, :N]), ahead)
    wanted = direct(u_BRT, k_RT, L, L + N)
    assert (found - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


def test_a_sequence_is_the_same_to_the_last_bit_alone_and_in_a_batch() -> None:
    N = 5 * BLOCK
    filters, u_BRN = OnlineFilter(random(R, N)), random(4, R, N)
    together = online(u_BRN, filters, torch.zeros(4, R, N))
    for row in range(4):
        assert torch.equal(online(u_BRN[row : row + 1], filters, torch.zeros(1, R, N))[0], together[row])
