"""Which base is drawn: facts of temperature, top-k and top-p, and frequencies beside the probabilities by the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hyena_ds.errors import UserError
from hyena_ds.predict.sampling import Sampling

LOGITS = [0.5, 2.0, -1.0, 1.0]
DRAWS = 20_000


def frequencies(sampling: Sampling) -> list[float]:
    drawn = [sampling.choose(LOGITS, uniform) for uniform in sampling.uniforms(0, DRAWS)]
    return (np.bincount(drawn, minlength=4) / DRAWS).tolist()


def softmax(temperature: float) -> list[float]:
    weights = [math.exp(logit / temperature) for logit in LOGITS]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_bases_are_drawn_as_often_as_the_softmax_says(temperature: float) -> None:
    assert frequencies(Sampling(temperature)) == pytest.approx(softmax(temperature), abs=0.015)


def test_top_k_draws_from_the_likeliest_in_proportion() -> None:
    p = softmax(1.0)
    assert frequencies(Sampling(top_k=2)) == pytest.approx(
        [0, p[1] / (p[1] + p[3]), 0, p[3] / (p[1] + p[3])], abs=0.015
    )


def test_top_p_draws_from_the_fewest_that_reach_it() -> None:
    """The likeliest has 0.603, the first two have 0.825, three have 0.960."""
    p = softmax(1.0)
    assert frequencies(Sampling(top_p=0.60))[1] == 1.0
    two = frequencies(Sampling(top_p=0.82))
    assert two == pytest.approx([0, p[1] / (p[1] + p[3]), 0, p[3] / (p[1] + p[3])], abs=0.015)
    assert [number > 0 for number in frequencies(Sampling(top_p=0.95))] == [True, True, False, True]
    assert all(number > 0 for number in frequencies(Sampling(top_p=0.97)))


def test_top_p_is_of_what_temperature_and_top_k_leave() -> None:
    """The first of the two likeliest alone has 0.731 at temperature 1 and 0.622 at temperature 2."""
    assert frequencies(Sampling(top_k=2, top_p=0.7))[1] == 1.0
    assert frequencies(Sampling(temperature=2.0, top_k=2, top_p=0.7))[1] < 1.0


@pytest.mark.parametrize("greedy", [Sampling(0.0), Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(1e-300)], ids=repr)
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2**-53])
def test_temperature_zero_top_k_of_one_and_the_least_top_p_are_greedy(greedy: Sampling, uniform: float) -> None:
    assert greedy.choose(LOGITS, uniform) == 1


@pytest.mark.parametrize("uniform", [0.0, 0.3, 0.5, 1.0 - 2**-53])
def test_every_uniform_number_gives_a_base_that_may_be_drawn(uniform: float) -> None:
    assert Sampling(top_k=2).choose(LOGITS, uniform) in (1, 3)
    assert Sampling().choose([-1e30, 0.0, -1e30, -1e30], uniform) == 1


def test_logits_that_are_not_finite_are_no_base() -> None:
    for wrong in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"nan|inf"):
            Sampling(0.0).choose([0.0, wrong, 0.0, 0.0], 0.5)


def test_uniform_numbers_are_those_of_seed_and_record_and_more_begin_with_the_same() -> None:
    first = Sampling(seed=5).uniforms(2, 10)
    assert Sampling(seed=5).uniforms(2, 1000)[:10] == first
    assert Sampling(seed=5).uniforms(3, 10) != first and Sampling(seed=2).uniforms(5, 10) != first
    assert all(0.0 <= number < 1.0 for number in first)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Sampling(-0.1), "--temperature: found -0.1, wanted 0"),
        (Sampling(math.nan), "--temperature: found nan"),
        (Sampling(math.inf), "--temperature: found inf"),
        (Sampling(top_k=0), "--top-k: found 0, wanted 1 to 4"),
        (Sampling(top_k=5), "--top-k: found 5"),
        (Sampling(top_p=0.0), "--top-p: found 0.0, wanted a probability above 0"),
        (Sampling(top_p=1.01), "--top-p: found 1.01"),
        (Sampling(top_p=math.nan), "--top-p: found nan"),
        (Sampling(seed=-1), "--seed: found -1, wanted 0 to"),
        (Sampling(seed=2**63), "--seed: found 9223372036854775808"),
    ],
)
def test_what_is_out_of_range_is_named(wrong: Sampling, said: str) -> None:
    with pytest.raises(UserError, match=said):
        wrong.check()
