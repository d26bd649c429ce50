"""The model through cuDNN's wrapper, with a stand-in that computes on the CPU: nothing here ran on a GPU."""

from __future__ import annotations

import pytest

from hyena_ds.config.policy import POLICIES, PolicyName
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.convolution_backend import cudnn_convolution
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken
from tests.cudnn_stand_in import CALLS, fft_causal_conv1d
from tests.model.golden import relative_error
from tests.model.plain import plain_gradients
from tests.model.test_block_policies import CONFIG, TOLERANCE, assert_close, batch, gradients, lively_model
from tests.pieces import small_pieces


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_computes_the_same_in_groups_and_keeps_no_reserve(policy: PolicyName) -> None:
    model = lively_model()
    B, L = 2, 101
    ids, targets = batch(B, L)
    wanted_loss, _, wanted = plain_gradients(dict(model.named_parameters()), CONFIG, ids, targets)
    CALLS.forget()
    with small_pieces(tokens=7, transforms=5 * B):
        call = ForwardPass(Layout.whole(L), policy=POLICIES[policy], convolution=cudnn_convolution(fft_causal_conv1d))
        loss, _ = NextToken(model).loss(ids, targets, call)
        forward = list(CALLS.shapes)
        assert CALLS.reserved == 0
        loss.backward()
    assert CALLS.reserved == 0
    assert forward == [(B, group, 128) for _ in range(CONFIG.layers) for group in (5, 5, 2)]
    assert {shape[1] for shape in CALLS.shapes} == {5, 2} and len(CALLS.shapes) >= 2 * len(forward)
    assert relative_error(loss, wanted_loss) <= TOLERANCE
    assert_close(gradients(model), wanted)
