"""The short convolution and its two backward functions against the library's grouped convolution, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hyena_ds.ops.short_convolution import (
    HALO,
    short_convolution,
    short_convolution_to_input,
    short_convolution_to_weight,
)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_forward_and_backward_equal_a_grouped_convolution(n: int) -> None:
    B, C = 2, 6
    generator = torch.Generator().manual_seed(n)
    p, w, b, dq = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((B, C, n + HALO), (C, 1, HALO + 1), (C,), (B, C, n))
    )
    p, w, b = p.requires_grad_(), w.requires_grad_(), b.requires_grad_()
    wanted = F.conv1d(p, w, b, groups=C)
    dp, dw, db = torch.autograd.grad(wanted, (p, w, b), dq)
    torch.testing.assert_close(short_convolution(p.detach(), w.detach(), b.detach()), wanted.detach())
    # Zeros around dq: what the tokens before and after the tile would add.
    torch.testing.assert_close(short_convolution_to_input(F.pad(dq, (HALO, HALO)), w.detach()), dp)
    found_dw, found_db = short_convolution_to_weight(dq, p.detach())
    torch.testing.assert_close(found_dw, dw)
    torch.testing.assert_close(found_db, db)
