"""Where the seconds of a step go: nothing is counted twice, nothing is left out, backward is in it."""

from __future__ import annotations

import time

import torch

from hyena_ds.bench.parts import NATIVE as OF_C
from hyena_ds.bench.parts import REST, seconds_by_part
from hyena_ds.config.model import ModelConfig
from hyena_ds.cost.work import PRODUCTS, TRANSFORMS, WAITING
from hyena_ds.model import block
from hyena_ds.model.backbone import build_model
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.model.kernels import Kernels
from hyena_ds.model.native_kernels import NATIVE
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken

L = 512
MODEL = build_model(ModelConfig(width=16, layers=2, maximum_context=L), 1)


def step(backward: bool = True, kernels: Kernels | None = None) -> None:
    ids_BL = torch.full((1, L), 7)
    loss, _ = NextToken(MODEL).loss(ids_BL, ids_BL, ForwardPass(Layout.whole(L), kernels=kernels))
    if backward:
        loss.backward()


def test_parts_add_up_to_the_clock() -> None:
    began = time.perf_counter()
    found = seconds_by_part(step, lambda: 0.0)
    assert sum(wall for wall, _ in found.values()) <= time.perf_counter() - began
    assert {PRODUCTS, TRANSFORMS, "implicit filter", "GELU", "short filter", "norms", "head and loss"} <= set(found)
    assert all(wall > 0 for part, (wall, _) in found.items() if part in (PRODUCTS, TRANSFORMS, REST))


def test_c_functions_are_a_part_and_their_products_are_products() -> None:
    step(kernels=NATIVE)
    found = seconds_by_part(lambda: step(kernels=NATIVE), lambda: 0.0)
    assert {PRODUCTS, TRANSFORMS, OF_C, "implicit filter"} <= set(found) and not {"GELU", "short filter"} & set(found)
    assert found[PRODUCTS][0] > 0 and found[OF_C][0] > 0


def test_backward_is_counted_and_left_as_it_was() -> None:
    """Three transforms forward, nine in all: the least of several measurements tells them apart."""
    backward = block._BlockFunction.backward
    forward = min(seconds_by_part(lambda: step(backward=False), lambda: 0.0)[TRANSFORMS][0] for _ in range(5))
    both = min(seconds_by_part(step, lambda: 0.0)[TRANSFORMS][0] for _ in range(5))
    assert both > 1.5 * forward
    assert block._BlockFunction.backward is backward


def test_waiting_is_what_the_exchanges_say() -> None:
    waits = iter((1.0, 1.25))
    assert seconds_by_part(lambda: None, lambda: next(waits))[WAITING] == (0.25, 0.0)
