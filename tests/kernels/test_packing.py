"""Exchange packing by Triton, interpreted: bit for bit what PyTorch copies, alone and between real processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hyena_ds.config.model import ModelConfig
from hyena_ds.model import kernel_choice, triton_kernels
from hyena_ds.model.kernel_choice import choose_kernels
from hyena_ds.ops.triton.packing import copy_pieces
from hyena_ds.ops.triton.packing_cases import PACKING_CASES
from tests.distributed.pool import Pool
from tests.kernels import packed_ranks

WIDE, NARROW = torch.float32, torch.bfloat16


@pytest.mark.parametrize(("source", "target"), [(WIDE, WIDE), (NARROW, NARROW), (NARROW, WIDE), (WIDE, NARROW)])
@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_random_shapes_arrive_bit_for_bit(source: torch.dtype, target: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    P, B, g = (int(n) for n in torch.randint(1, 5, (3,), generator=generator))
    l = (1, 7, 1023, 1030)[seed]
    more = int(torch.randint(0, 9, (), generator=generator))
    # Rows that are longer than what is taken of them, as a transform's are; a card rounds, the interpreter cuts off.
    signal = torch.randn(B, g, P * l + more, generator=generator).to(NARROW).to(source)
    pieces = signal[..., : P * l].unflatten(2, (P, l)).permute(2, 0, 1, 3)
    into = torch.full((B, P, 2 * g + 1, l), 7.0, dtype=target)
    wanted = into.clone()
    rows = slice(1, 2 * g + 1, 2)
    assert copy_pieces(into[:, :, rows].transpose(0, 1), pieces).shape == (P, B, g, l)
    wanted[:, :, rows].transpose(0, 1).copy_(pieces)
    assert torch.equal(into, wanted)


def test_what_does_not_fit_is_rounded_to_a_neighbour() -> None:
    pieces = torch.randn(2, 1, 3, 50, generator=torch.Generator().manual_seed(3))
    found = copy_pieces(torch.empty_like(pieces, dtype=NARROW), pieces)
    assert float(((found.float() - pieces) / pieces).abs().max()) < 2.0**-7


LAUNCHES = {
    "1 x float32": 6,
    "1 x float32, in pieces": 0,
    "1 x bfloat16": 7,
    "1 x bfloat16, in pieces": 2,
    "3 x float32": 16,
    "3 x float32, in pieces": 8,
    "3 x bfloat16": 16,
    "3 x bfloat16, in pieces": 10,
    "1 x convolution": 0,
    "3 x convolution": 12,
    "fused convolution": 0,
    "filter": 3,
}
"""Two tensors go through in two groups, the second of one channel. One sequence is copied where it is put together, where it is
rounded and where what goes to a rank is no block; a convolution and its backward copy none. Several are copied at both ends."""


@pytest.mark.slow
def test_ranks_that_pack_by_the_kernel_get_what_others_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # of the processes
    ranks = Pool(2)
    try:
        everyone = ranks.run(packed_ranks.both_ways, timeout=300.0)
    finally:
        ranks.close()
    for found in everyone:
        assert all(same for same, _ in found.values()), found
        assert {name: started for name, (_, started) in found.items()} == LAUNCHES


def test_a_kernel_that_packs_in_another_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(signal: torch.Tensor, pieces: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(result.flip(0) for result in PACKING_CASES[0].portable(signal, pieces))

    monkeypatch.setattr(kernel_choice, "is_cuda", lambda device: True)
    monkeypatch.setattr(kernel_choice, "CHECKED", ((2, 19),))
    monkeypatch.setattr(triton_kernels, "CASES", (replace(PACKING_CASES[0], kernel=turned),))
    config = ModelConfig(width=4, layers=1, maximum_context=64, filter_width=4, filter_features=3, inner_width=6)
    choice = choose_kernels("auto", config, "bfloat16", torch.device("cpu"))
    assert choice.kernels is None
    assert choice.why.startswith("a kernel, exchange: copies, whose results differ: sent of 2 x 19 tokens ")
