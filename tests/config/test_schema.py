"""A run's config: what cannot work is refused, what follows is derived."""

from __future__ import annotations

import math

import pytest

from hyena_ds.config.arithmetic import describe, learning_rate, plan_stages
from hyena_ds.config.loading import dump_yaml, parse_yaml
from hyena_ds.config.schema import OptimizerConfig, RunConfig
from hyena_ds.errors import UserError

GOOD = """\
name: test
model: {width: 12, layers: 1, maximum_context: 64}
data:
  sources: [{shards: somewhere}]
stages:
  - {context_length: 16, steps: 3, micro_batch_size: 2, global_batch: 8}
  - {context_length: 64, steps: 5, micro_batch_size: 1, global_batch_tokens: 256, sequence_parallel: 2}
"""


def parse(*overrides: str) -> RunConfig:
    return parse_yaml(GOOD, "run.yaml", RunConfig, list(overrides))


def problem(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "stages.1.sequence_parallel=3",
            "stages.1.context_length: found 64, which sequence_parallel 3 does not divide",
        ),
        ("stages.1.context_length=128", "stage 1 has context_length 128, longer than model.maximum_context 64"),
        ("stages.1.sequence_parallel=8", "sequence_parallel 8, which does not divide model.width 12"),
        (
            "stages.1.sequence_parallel=64",
            "stages.1.sequence_parallel: found 64, which leaves fewer than 2 tokens a rank",
        ),
        ("stages.1.global_batch_tokens=100", "found 100, wanted a multiple of context_length 64"),
        ("stages.1.global_batch=4", "wanted exactly one of global_batch and global_batch_tokens"),
        ("stages.0.global_batch=null", "wanted exactly one of global_batch and global_batch_tokens"),
        ("stages.0.global_batch=0", "stages.0.global_batch: found 0, wanted at least 1"),
        ("stages.0.steps=0", "stages.0.steps: found 0, wanted at least 1"),
        ("stages=[]", "stages: found an empty list, wanted at least one stage"),
        ("data.sources=[]", "data: sources: found none, wanted at least one source, or a task in their place"),
        ("data.sources.0.weight=0", "data.sources.0.weight: found 0.0, wanted a positive number"),
        ("data.shuffle_shards=0", "data.shuffle_shards: found 0, wanted at least 1"),
        ("data.workers=-1", "data.workers: found -1, wanted 0 or more"),
        ("data.sources.0.shards=gs://bucket/genome", "found 'gs://bucket/genome', wanted a directory, http://"),
        ("data.sources.0.shards=pipe:cat index.json", "wanted {shard} in the command"),
        ("data.sources.0.shards=https:///genome", "wanted a host or a bucket after ://"),
        ("data.sources.0.shards='http://[/genome'", "wanted a host or a bucket after ://"),
        ("data.cache.gib=0", "data.cache.gib: found 0.0, wanted a positive number"),
        ("data.cache.directory=''", "data.cache.directory: found '', wanted a directory, or null"),
        ("data.ignore=[x]", "data.ignore.0: found 'x', wanted n or unknown"),
        ("model.width=0", "model.width: found 0, wanted at least 1"),
        ("model.maximum_context=1", "model.maximum_context: found 1, wanted at least 2"),
        ("model.inner_width=-1", "model.inner_width: found -1, wanted a width or 0"),
        ("model.filter_features=4", "model.filter_features: found 4, wanted an odd number from 3 on"),
        ("model.extension=rescale", "model.extension: wanted extension and extended_from together, or neither"),
        ("model.extended_from=32", "model.extension: wanted extension and extended_from together, or neither"),
        (
            "model={width: 12, layers: 1, maximum_context: 64, extension: rescale, extended_from: 64}",
            "model.extended_from: found 64, wanted 2 to below maximum_context 64",
        ),
        (
            "model={width: 12, layers: 1, maximum_context: 64, extension: extrapolate, extended_from: 1}",
            "model.extended_from: found 1, wanted 2 to below maximum_context 64",
        ),
        ("model.extension=stretch", "model.extension: found 'stretch', wanted rescale or extrapolate"),
        (
            "model={width: 12, layers: 1, maximum_context: 64, extension: rescale, extended_from: 16}",
            "initialize_from: found none, wanted weights of maximum_context 16, which model.extension extends",
        ),
        ("model.embedding_dropout=1", "model.embedding_dropout: found 1.0, wanted a probability from 0 to below 1"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate: found 0.0, wanted a positive number"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay: found -1.0, wanted 0 or more"),
        ("optimizer.warmup_fraction=1", "optimizer.warmup_fraction: found 1.0, wanted 0 to below 1"),
        ("optimizer.betas=[0.9]", "optimizer.betas: found [0.9], wanted two numbers"),
        ("validation.windows=0", "validation.windows: found 0, wanted at least 1"),
        ("checkpoint.keep_every=0", "checkpoint.keep_every: found 0, wanted at least 1, or null"),
        (
            "checkpoint.tiers=[{place: ftp://host/x}]",
            "place: found 'ftp://host/x', wanted a directory or s3://BUCKET/PATH",
        ),
        ("checkpoint.tiers=[{place: s3:///x}]", "place: found 's3:///x', wanted a directory or s3://BUCKET/PATH"),
        ("checkpoint.tiers=[{place: ''}]", "place: found '', wanted a directory or s3://BUCKET/PATH"),
        ("checkpoint.tiers=[{place: /x, keep_every: 0}]", "keep_every: found 0, wanted at least 1, or null"),
        ("checkpoint.tiers=[{place: /x, patience: 0}]", "patience: found 0.0, wanted a positive number"),
        ("checkpoint.tiers=[{place: /x}, {place: /x}]", "checkpoint.tiers: found '/x' twice, wanted every place once"),
        (
            "checkpoint.tiers=[{place: /x, every_steps: 20}]",
            "checkpoint.tiers: tier 0 has every_steps 20, wanted at least checkpoint.every_steps 100: only what was saved",
        ),
        (
            "checkpoint.tiers=[{place: s3://bucket/x, local: true}]",
            "local: found true for 's3://bucket/x', wanted a directory",
        ),
        (
            "checkpoint.tiers=[{place: /x, local: true, every_steps: 50}, {place: /y, local: true, every_steps: 50}]",
            "checkpoint.tiers: found 2 that are local, wanted at most one",
        ),
        (
            "checkpoint.tiers=[{place: /x, local: true, every_steps: 100}]",
            "checkpoint.tiers: the local tier has every_steps 100, wanted fewer than checkpoint.every_steps 100: what is saved",
        ),
        (
            "checkpoint.tiers=[{place: /x, local: true, every_steps: 50}, {place: /y, every_steps: 20}]",
            "checkpoint.tiers: tier 1 has every_steps 20, wanted at least the local tier's every_steps 50: only what was",
        ),
        (f"checkpoint.tiers=[{', '.join(f'{{place: /{n}}}' for n in range(9))}]", "found 9 places, wanted at most 8"),
        ("checkpoint.keep_last=0", "checkpoint.keep_last: found 0, wanted at least 1"),
        ("name=a/b", "name: found 'a/b', wanted a plain directory name"),
        ("seed=-1", "seed: found -1, wanted 0 to 2^31 - 1"),
        ("local_ranks=0", "local_ranks: found 0, wanted at least 1"),
        ("stragglers.slower=1", "stragglers.slower: found 1, wanted more than 1: as long as the others is not slow"),
        ("stragglers.ends_at=1.2", "stragglers.ends_at: found 1.2, wanted at least slower, 1.5, or null"),
        ("corruption.every_steps=0", "corruption.every_steps: found 0, wanted at least 1"),
        (
            "profile={steps: [105, 100]}",
            "profile.steps: found [105, 100], wanted the first and the last step, as [100, 105]",
        ),
        ("profile={steps: [1, 1001]}", "profile.steps: found 1,001 steps, wanted at most 1,000"),
        ("zero_stage=0 offload_optimizer=cpu", "offload_optimizer: found cpu with zero_stage 0, which shards no state"),
        (
            "offload_param=cpu",
            "offload_param: found cpu with zero_stage 1, which leaves parameters whole, wanted zero_stage 3",
        ),
        ("offload_optimizer=nvme", "offload_optimizer: found 'nvme', wanted cpu"),
        ("zero_stage=4", "zero_stage: found '4', wanted 0 or 1 or 2 or 3"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(override: str, words: str) -> None:
    assert words in problem(*(override.split() if override.startswith("zero_stage=0") else [override]))


def test_the_sequences_and_tokens_of_a_stage_follow_from_either_batch_key() -> None:
    config = parse()
    assert [stage.sequences for stage in config.schedule] == [8, 4]
    assert [stage.tokens_per_step for stage in config.schedule] == [128, 256]
    assert (config.total_steps, config.total_tokens, config.widest_sequence_parallel) == (8, 3 * 128 + 5 * 256, 2)


@pytest.mark.parametrize(("ranks", "grids"), [(2, [(2, 2), (1, 4)]), (4, [(4, 1), (2, 2)])])
def test_every_stage_uses_all_ranks_and_the_whole_batch(ranks: int, grids: list[tuple[int, int]]) -> None:
    plans = plan_stages(parse(), ranks)
    assert [(plan.data_parallel, plan.accumulation) for plan in plans] == grids
    assert [(plan.first_step, plan.end_step) for plan in plans] == [(0, 3), (3, 8)]


def test_ranks_that_the_sequence_parallel_size_does_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match=r"stages\.1\.sequence_parallel: found 2 with 1 ranks, wanted a divisor"):
        plan_stages(parse(), 1)


def test_a_batch_that_the_grid_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"stages\.0\.global_batch: found 8 sequences, wanted a multiple of 6 "):
        plan_stages(parse(), 6)


def test_the_learning_rate_starts_at_the_warmups_start_peaks_and_ends_at_the_minimum() -> None:
    config = OptimizerConfig(warmup_fraction=0.1)
    rates = [learning_rate(config, step, 50) for step in range(50)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[5] == pytest.approx(6e-4) and max(rates) == rates[5]
    assert rates[-1] == pytest.approx(6e-5, rel=1e-9)
    assert rates[:6] == sorted(rates[:6]) and rates[5:] == sorted(rates[5:], reverse=True)


def test_the_learning_rate_is_linear_then_half_a_cosine() -> None:
    config = OptimizerConfig(warmup_fraction=0.2)
    assert learning_rate(config, 2, 21) == pytest.approx((1e-6 + 6e-4) / 2)
    assert learning_rate(config, 12, 21) == pytest.approx((6e-4 + 6e-5) / 2)
    assert learning_rate(config, 8, 21) == pytest.approx(6e-5 + 5.4e-4 * (0.5 + math.sqrt(0.125)))


@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_runs_have_a_finite_positive_learning_rate(total: int) -> None:
    config = OptimizerConfig(warmup_fraction=0.5)
    assert all(0 < learning_rate(config, step, total) <= 6e-4 for step in range(total))


EXTENDED = ("model.extended_from=16", "model.extension=extrapolate", "initialize_from=runs/short")


def test_an_extended_model_keeps_its_limit_and_says_so_in_the_plan() -> None:
    model = parse(*EXTENDED).model
    assert (model.maximum_context, model.time_context) == (64, 16)
    assert parse("model.extended_from=16", "model.extension=rescale", EXTENDED[2]).model.time_context == 64
    assert parse().model.time_context == 64
    lines = describe(parse(*EXTENDED), 2)
    assert "model: maximum context 64, extended from 16 by extrapolate" in lines
    assert not any(line.startswith("model:") for line in describe(parse(), 2))


def test_the_resolved_config_is_read_back_as_it_was() -> None:
    config = parse(
        "optimizer.learning_rate=3e-4", "data.ignore=[]", "initialize_from=weights.safetensors", "zero_stage=3"
    )
    assert parse_yaml(dump_yaml(config), "dump", RunConfig) == config
    assert parse_yaml(dump_yaml(parse(*EXTENDED)), "dump", RunConfig) == parse(*EXTENDED)


def test_who_waits_for_a_shard_loses_patience_before_the_watchdog_does() -> None:
    afar = "data.sources.0.shards=https://host/genome"
    assert "cache.patience is 90 seconds, wanted less than watchdog.step 60" in problem(afar, "watchdog.step=60")
    assert parse(afar, "watchdog.step=60", "data.cache.patience=30").data.is_afar
    assert parse(afar, "watchdog.step=60", "watchdog.enabled=false").data.is_afar
    assert not parse("watchdog.step=60").data.is_afar


def test_the_cache_is_the_users_own_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert str(parse().data.cache.path) == "/home/me/.cache/hyena-ds/shards"
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert str(parse().data.cache.path) == "/fast/hyena-ds/shards"
    monkeypatch.setenv("LOCAL_DISK", "/scratch/7")
    assert str(parse("data.cache.directory=$LOCAL_DISK/shards").data.cache.path) == "/scratch/7/shards"
