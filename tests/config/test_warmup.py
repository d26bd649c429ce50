"""The context schedule: a ladder is the stages that it stands for, and what follows from ranks is what was asked for."""

from __future__ import annotations

import pytest
import yaml

from hyena_ds.config.arithmetic import describe, learning_rate, plan_stages
from hyena_ds.config.loading import dump_yaml, parse_yaml
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import UserError

BEGINNING = """\
name: test
model: {width: 12, layers: 1, maximum_context: 64}
data:
  sources: [{shards: somewhere}]
"""
LADDER = BEGINNING + "warmup: {from: 8, to: 64, double_every: 3}\n"
ROW = "stages=[{context_length: 64, global_batch: 4, steps: 2}]"


def parse(*overrides: str, text: str = LADDER) -> RunConfig:
    return parse_yaml(text, "run.yaml", RunConfig, list(overrides))


def problem(*overrides: str, text: str = LADDER) -> str:
    with pytest.raises(UserError) as caught:
        parse(*overrides, text=text)
    return str(caught.value)


def test_a_ladder_is_the_stages_that_it_stands_for() -> None:
    ladder = parse(
        "warmup.double_every_tokens=1000",
        "warmup.double_every=null",
        "warmup.global_batch_tokens=128",
        "warmup.tokens_per_rank=16",
        "warmup.activation_policy=lean",
        ROW,
    )
    rows = """\
stages:
  - {context_length: 8, tokens: 1000, global_batch_tokens: 128, activation_policy: lean}
  - {context_length: 16, tokens: 1000, global_batch_tokens: 128, activation_policy: lean}
  - {context_length: 32, tokens: 1000, global_batch_tokens: 128, activation_policy: lean, sequence_parallel: 2}
  - {context_length: 64, tokens: 1000, global_batch_tokens: 128, activation_policy: lean, sequence_parallel: 4}
  - {context_length: 64, steps: 2, global_batch: 4}
"""
    written = parse(text=BEGINNING + rows)
    assert ladder.schedule == written.schedule
    assert describe(ladder, 4) == describe(written, 4)
    assert ladder.widest_sequence_parallel == 4
    assert ladder.total_tokens == 4 * 8 * 128 + 2 * 4 * 64


def test_the_shortest_ladder_has_the_published_batch_and_is_never_cut() -> None:
    rungs = parse().schedule
    assert [stage.context_length for stage in rungs] == [8, 16, 32, 64]
    assert {(stage.sequences, stage.step_count, stage.sequence_parallel) for stage in rungs} == {(256, 3, 1)}
    assert [stage.tokens_per_step for stage in rungs] == [2048, 4096, 8192, 16384]


def test_a_ladder_constant_in_tokens_has_half_the_sequences_on_every_rung() -> None:
    assert [stage.sequences for stage in parse("warmup.global_batch_tokens=128").schedule] == [16, 8, 4, 2]


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (64, 1), (65, 2), (128, 2), (1000, 16)])
def test_the_tokens_of_a_stage_are_rounded_up_to_whole_steps(tokens: int, steps: int) -> None:
    stage = StageConfig(16, tokens=tokens, global_batch=4)
    assert (stage.step_count, stage.total_tokens) == (steps, steps * 64)
    by_steps = StageConfig(16, steps, global_batch=4)
    assert (by_steps.step_count, by_steps.total_tokens) == (steps, steps * 64)


@pytest.mark.parametrize("ranks", [4, 8])
@pytest.mark.parametrize("batch", [8, 24, 56])
def test_the_chosen_micro_batch_is_the_largest_that_fits_where_one_sequence_of_the_longest_stage_does(
    ranks: int, batch: int
) -> None:
    config = parse("warmup.tokens_per_rank=16", f"warmup.global_batch={batch}")
    for plan in plan_stages(config, ranks):
        stage = plan.config
        row = batch // plan.data_parallel
        fitting = [m for m in range(1, row + 1) if row % m == 0 and m * stage.local_length <= 16]
        assert plan.micro_batch_size == max(fitting)
        assert plan.data_parallel * plan.micro_batch_size * plan.accumulation == batch


def test_a_stage_whose_slice_is_longer_than_that_of_the_longest_stage_takes_one_sequence_at_a_time() -> None:
    row = "stages=[{context_length: 64, global_batch: 4, steps: 2, sequence_parallel: 4}]"
    plans = plan_stages(parse("warmup.to=32", "warmup.global_batch=4", row), 4)
    assert [plan.micro_batch_size for plan in plans] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("rungs", "last", "sizes"),
    [("lean", "lean", [8, 4, 2, 1]), ("leanest", "fastest", [8, 4, 2, 1]), ("balanced", "lean", [4, 2, 1, 1])],
)
def test_a_policy_that_keeps_more_than_the_longest_stages_does_gets_a_smaller_micro_batch(
    rungs: str, last: str, sizes: list[int]
) -> None:
    """`lean` keeps 3 x 64 at 64 tokens, and `balanced` no more than that with 38: 4 x 8, 2 x 16 or 1 x 32."""
    row = f"stages=[{{context_length: 64, global_batch: 8, steps: 2, activation_policy: {last}}}]"
    config = parse("warmup.to=32", "warmup.global_batch=8", f"warmup.activation_policy={rungs}", row)
    assert [plan.micro_batch_size for plan in plan_stages(config, 1)] == sizes


def test_a_configured_micro_batch_stands() -> None:
    rows = "stages=[{context_length: 16, global_batch: 24, steps: 2, micro_batch_size: 3}, {context_length: 64, steps: 1, global_batch: 2}]"
    plans = plan_stages(parse(rows, text=BEGINNING), 2)
    assert [(plan.micro_batch_size, plan.accumulation) for plan in plans] == [(3, 4), (1, 1)]


def test_a_stages_own_policy_comes_before_that_of_the_run() -> None:
    config = parse("activation_policy=lean", "warmup.activation_policy=fastest", ROW)
    assert [plan.activation_policy for plan in plan_stages(config, 1)] == ["fastest"] * 4 + ["lean"]
    assert {plan.activation_policy for plan in plan_stages(parse("activation_policy=lean"), 1)} == {"lean"}


def test_the_key_is_from_in_yaml_on_the_command_line_and_in_the_resolved_config() -> None:
    config = parse("warmup.from=16", ROW)
    assert [stage.context_length for stage in config.schedule] == [16, 32, 64, 64]
    assert yaml.safe_load(dump_yaml(config))["warmup"]["from"] == 16
    assert parse_yaml(dump_yaml(config), "dump", RunConfig) == config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["warmup.double_every=null"],
            "warmup.double_every: found neither double_every nor double_every_tokens, wanted the steps or the tokens of",
        ),
        (
            ["warmup.double_every_tokens=9"],
            "warmup.double_every: found double_every and double_every_tokens, wanted one of them; leave one out",
        ),
        (
            ["warmup.global_batch=8", "warmup.global_batch_tokens=64"],
            "warmup.global_batch: found global_batch and global_batch_tokens, wanted one of them; leave one out",
        ),
        (["warmup.double_every=0"], "warmup.double_every: found 0, wanted at least 1"),
        (["warmup.global_batch=0"], "warmup.global_batch: found 0, wanted at least 1"),
        (["warmup.from=0"], "warmup.from: found 0, wanted at least 1"),
        (
            ["warmup.to=100"],
            "warmup.to: found 100, wanted 8 doubled once or more, as 64 or 128 is; choose one of them, and put another "
            "length into a row of stages",
        ),
        (["warmup.to=8"], "warmup.to: found 8, wanted 8 doubled once or more, as 8 or 16 is"),
        (["warmup.to=4"], "warmup.to: found 4, wanted 8 doubled once or more"),
        (
            ["warmup.to=128"],
            "warmup: rung 4 has context_length 128, longer than model.maximum_context 64; raise maximum_context or shorten",
        ),
        (
            ["warmup.global_batch_tokens=96"],
            "warmup.global_batch_tokens: found 96, wanted a multiple of the longest rung, 64",
        ),
        (["warmup.tokens_per_rank=1"], "warmup.tokens_per_rank: found 1, wanted at least 2"),
        (
            ["warmup.from=6", "warmup.to=48", "warmup.tokens_per_rank=2"],
            "warmup.tokens_per_rank: found 2, which cuts the rung of 6 tokens over 4 ranks, which do not divide it",
        ),
        (
            ["warmup.tokens_per_rank=8"],
            "warmup: rung 3 has sequence_parallel 8, which does not divide model.width 12: every rank takes width / "
            "sequence_parallel channels; raise tokens_per_rank",
        ),
        (["warmup.activation_policy=thrifty"], "warmup.activation_policy: found 'thrifty', wanted fastest or balanced"),
        (["warmup.double_evry=3"], "warmup.double_evry: found an unknown key; did you mean 'double_every'?"),
        (["warmup={from: 8, double_every: 3}"], "warmup: wanted the key 'to', found from, double_every"),
        (["warmup={to: 8, double_every: 3}"], "warmup: wanted the key 'from', found to, double_every"),
        (["warmup=null"], "stages: found an empty list, wanted at least one stage, or a warmup"),
        (
            ["stages=[{context_length: 8, global_batch: 4}]"],
            "stages.0.steps: wanted exactly one of steps and tokens",
        ),
        (
            ["stages=[{context_length: 8, global_batch: 4, steps: 1, tokens: 1}]"],
            "stages.0.steps: wanted exactly one of steps and tokens",
        ),
        (
            ["stages=[{context_length: 8, global_batch: 4, tokens: 0}]"],
            "stages.0.tokens: found 0, wanted at least 1",
        ),
        (
            ["stages=[{context_length: 8, global_batch: 4, steps: 1, micro_batch_size: 0}]"],
            "stages.0.micro_batch_size: found 0, wanted at least 1",
        ),
        (
            ["stages=[{context_length: 8, global_batch: 4, steps: 1, activation_policy: x}]"],
            "stages.0.activation_policy: found 'x', wanted fastest or balanced or lean or leanest",
        ),
        (
            ["stages=[{context_length: 80, global_batch: 4, steps: 1}]"],
            "stages: stage 0 has context_length 80, longer than model.maximum_context 64",
        ),
        (
            ["validation.final_context=often"],
            "validation.final_context: found 'often', wanted always or boundaries or never",
        ),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_with_its_reason(overrides: list[str], words: str) -> None:
    assert words in problem(*overrides)


def test_an_error_of_a_ladder_names_its_line() -> None:
    text = BEGINNING + "warmup:\n  from: 8\n  to: 100\n  double_every: 3\n"
    assert problem(text=text).startswith("run.yaml:7: warmup.to: found 100")


@pytest.mark.parametrize(
    ("overrides", "ranks", "words"),
    [
        (
            ["warmup.tokens_per_rank=16"],
            2,
            "warmup: rung 3: sequence_parallel: found 4 with 2 ranks, wanted a divisor of the number of ranks; start a "
            "multiple of 4 ranks or raise tokens_per_rank",
        ),
        (
            ["warmup.global_batch=6"],
            4,
            "warmup: rung 0: global_batch: found 6 sequences, wanted a multiple of 4 (data parallel 4 on 4 ranks); change "
            "global_batch or the number of ranks",
        ),
        (
            ["stages=[{context_length: 8, global_batch: 6, steps: 1}]"],
            4,
            "stages.0.global_batch: found 6 sequences, wanted a multiple of 4 (data parallel 4 on 4 ranks)",
        ),
    ],
)
def test_a_grid_that_does_not_divide_names_the_rung(overrides: list[str], ranks: int, words: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_stages(parse(*overrides), ranks)
    assert words in str(caught.value)


def test_the_plan_is_printed_as_an_aligned_table() -> None:
    config = parse("warmup.tokens_per_rank=32", "warmup.global_batch=8", "activation_policy=lean", ROW)
    assert describe(config, 2) == [
        "test: 14 steps, 3,392 tokens, ZeRO stage 1, float32, on 2 ranks",
        "learning rate: one schedule over all 14 steps, not reset between stages; to 6.00e-04 in 0 steps, then a cosine to "
        "6.00e-05",
        "validation: every 100 steps and at the end of every stage; also at the final context, 64: at the end of every stage",
        "batch: sequences of a step = data-parallel rows x micro batch x micro steps",
        "stage  context         grid          batch  policy     steps  tokens  so far         learning rate",
        "    0        8  dp 2 x sp 1  8 = 2 x 4 x 1    lean    1 to 3     192     192  6.00e-04 to 5.69e-04",
        "    1       16  dp 2 x sp 1  8 = 2 x 4 x 1    lean    4 to 6     384     576  5.32e-04 to 4.26e-04",
        "    2       32  dp 2 x sp 1  8 = 2 x 2 x 2    lean    7 to 9     768   1,344  3.63e-04 to 2.34e-04",
        "    3       64  dp 1 x sp 2  8 = 1 x 2 x 4    lean  10 to 12   1,536   2,880  1.77e-04 to 9.09e-05",
        "    4       64  dp 2 x sp 1  4 = 2 x 1 x 2    lean  13 to 14     512   3,392  6.78e-05 to 6.00e-05",
    ]


def test_the_learning_rate_runs_on_over_a_boundary() -> None:
    config = parse()
    rates = [learning_rate(config.optimizer, step, config.total_steps) for step in range(config.total_steps)]
    for plan, row in zip(plan_stages(config, 1), describe(config, 1)[-4:], strict=True):
        assert row.endswith(f"{rates[plan.first_step]:.2e} to {rates[plan.end_step - 1]:.2e}")
    assert rates == sorted(rates, reverse=True) and rates[0] == 6e-4


@pytest.mark.parametrize(
    ("when", "ending"),
    [("always", "also at the final context, 64: always"), ("never", "at the end of every stage")],
)
def test_the_plan_says_what_is_validated_at_the_final_context(when: str, ending: str) -> None:
    assert describe(parse(f"validation.final_context={when}"), 1)[2].endswith(ending)
