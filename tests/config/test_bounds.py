"""Configs that nobody writes on purpose: answered at once, in a sentence, whatever they hold."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hyena_ds.cli import main
from hyena_ds.config.arithmetic import describe, describe_hosts, divisors, plan_stages, savings
from hyena_ds.config.loading import load_yaml, parse_yaml
from hyena_ds.config.nodes import MOST_BYTES, MOST_OVERRIDES
from hyena_ds.config.schema import RunConfig
from hyena_ds.errors import MOST_CHARACTERS, UserError
from tests.memory import grows_less_than
from tests.paths import ROOT

SECONDS = 10.0
"""Seconds of a processor. What is refused takes one; without a bound it took minutes, or for ever."""
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
RUN = """\
name: test
model: {width: 64, layers: 1, maximum_context: 1099511627776}
data:
  sources: [{shards: somewhere}]
stages:
  - {context_length: 16, steps: 3, global_batch: 8}
"""
LADDER = ["warmup={from: 16, to: 64, double_every: 2}"]


def parse(*overrides: str) -> RunConfig:
    return parse_yaml(RUN, "run.yaml", RunConfig, list(overrides))


def problem(*overrides: str, text: str = RUN) -> str:
    """The sentence; it comes soon, and takes little memory."""
    began = time.process_time()
    with grows_less_than(200), pytest.raises(UserError) as caught:
        parse_yaml(text, "run.yaml", RunConfig, list(overrides))
    assert time.process_time() - began < SECONDS
    said = str(caught.value)
    assert len(said) <= MOST_CHARACTERS and said.isprintable()
    return said


def laughs(times: int, each: int) -> str:
    rows = [f"a0: &a0 [{', '.join(['x'] * each)}]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * each)}]" for n in range(1, times)]
    return "\n".join(rows)


@pytest.mark.parametrize("times", [9, 40])
def test_aliases_that_multiply_are_refused_by_what_they_would_come_to(times: int) -> None:
    assert "keys and values behind its aliases, wanted fewer" in problem(text=laughs(times, 9))
    assert "keys and values behind its aliases, wanted fewer" in problem(
        f"model={{{laughs(times, 9)}}}".replace("\n", ",")
    )


def test_aliases_that_overrides_grow_are_counted_again() -> None:
    text = RUN + "zero_stage: &a [" + "1, " * 900 + "]\nprecision: [" + "*a, " * 10 + "]\n"
    assert "wanted fewer" in problem("zero_stage.0=[1, 1, 1, 1, 1, 1, 1, 1, 1, 1" + ", 1" * 900 + "]", text=text)


def test_an_alias_that_is_used_a_few_times_works_as_ever() -> None:
    text = RUN.replace("  - {", "  - &row {") + "  - *row\n  - *row\n"
    assert parse_yaml(text, "run.yaml", RunConfig).total_steps == 9


@pytest.mark.parametrize(
    "text",
    [
        "a: [" + "1, " * 80_000 + "]",
        "? a\n" * 60_000,
        "".join(f"- &a{n} b\n" for n in range(20_000)),
        "{a: " * 20_000,
        "- " * 60_000,
        "<<: &a {<<: *a}\n",
        "%YAML 1." + "1" * 5000 + "\n--- 1\n",
        'a: "\\UFFFFFFFF"\n',
        "x" * (MOST_BYTES + 1),
    ],
    ids=["list", "keys", "anchors", "nested", "nested-list", "merge", "version", "character", "long"],
)
def test_a_text_that_is_no_config_is_answered_in_a_sentence(text: str) -> None:
    assert problem(text=text).startswith("run.yaml")


def test_what_is_no_small_file_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.yaml").write_bytes(b"#" * 10_000_000)
    for path, said in (
        ("/dev/zero", "found a pipe, a directory or a device for the config"),
        (str(tmp_path / "pipe"), "found a pipe, a directory or a device for the config"),
        (str(tmp_path), "cannot read the config (Is a directory)"),
        (str(tmp_path / "large.yaml"), "found more than 262,144 bytes for the config"),
        (str(tmp_path / ("x" * 300)), "cannot read the config (File name too long)"),
        ("a\0b", "found a NUL in an argument"),
    ):
        assert main(["check", path]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(UserError, match="found a NUL in the name of the config"):
        load_yaml("a\0b", RunConfig)


@pytest.mark.parametrize(
    "number", ["1" + "0" * 400, "9" * 5000, "१", "²", "-" + "9" * 400, "0x10", "1e400", ".inf", "nan"]
)
@pytest.mark.parametrize(
    "key",
    [
        *("model.width", "model.layers", "model.maximum_context", "model.inner_width", "model.filter_width"),
        *("model.filter_features", "model.filter_frequency", "model.filter_shift", "data.sources.0.weight", "seed"),
        *("data.shuffle_shards", "data.workers", "data.cache.gib", "data.cache.stall", "data.cache.patience"),
        *("stages.0.context_length", "stages.0.steps", "stages.0.global_batch", "stages.0.micro_batch_size"),
        *("stages.0.sequence_parallel", "stages.0.tokens", "stages.0.global_batch_tokens", "local_ranks", "stop_after"),
        *("warmup.from", "warmup.to", "warmup.double_every", "warmup.tokens_per_rank", "optimizer.learning_rate"),
        *("optimizer.epsilon", "optimizer.weight_decay", "optimizer.gradient_clipping", "optimizer.warmup_fraction"),
        *("validation.windows", "checkpoint.keep_last", "checkpoint.keep_every", "checkpoint.every_steps"),
        *("watchdog.step", "watchdog.silence", "non_finite.skips", "supervisor.restarts_without_progress"),
        *("supervisor.spare_hosts", "supervisor.fewest_hosts"),
    ],
)
def test_no_setting_takes_a_number_that_is_none_or_beyond_all_reason(key: str, number: str) -> None:
    ladder = LADDER if key.startswith("warmup") else []
    said = problem(*ladder, f"{key}={number}")
    assert key.rpartition(".")[2] in said


def test_the_largest_numbers_that_are_taken_are_planned_at_once() -> None:
    rows = ", ".join(
        f"{{context_length: {2**30 + 2 * n}, steps: {10**12 - n}, global_batch: {10**8 - 8 * n}}}" for n in range(256)
    )
    began = time.process_time()
    config = parse(f"stages=[{rows}]", "model.width=65536", "model.layers=10000")
    assert len(describe(config, 1)) == 5 + 256 - 0
    assert next(savings(config, plan_stages(config, 1)[0]))
    wide = parse("stages=[{context_length: 131072, steps: 1, global_batch: 131072, sequence_parallel: 64}]")
    assert "131,008 more" in describe_hosts(wide, [f"host {rank}" for rank in range(2**17)])[0]
    assert time.process_time() - began < SECONDS
    assert "wanted at most 256" in problem(f"stages=[{rows}, {{context_length: 2, steps: 1, global_batch: 1}}]")


def test_divisors_are_all_there_and_in_order() -> None:
    for number in (1, 2, 36, 97, 360):
        assert divisors(number) == tuple(each for each in range(1, number + 1) if number % each == 0)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.²=1", "found '²', wanted an index below 1 in the list 'stages'"),
        ("stages.१=1", "found '१', wanted an index below 1"),
        (f"stages.{'9' * 5000}=1", "wanted an index below 1 in the list 'stages'"),
        ("a..b=1", "wanted key.path=value"),
        (".a=1", "wanted key.path=value"),
        ("a.=1", "wanted key.path=value"),
        ("name.a.b=1", "'name' holds a single value, not keys"),
        ('name="a\\0b"', "found the character 0x0 in 'a\\x00b', wanted text"),
        ('output="\\ud800"', "found the character 0xd800"),
        ("name=\udcff", "found the control character 0xdcff"),
        ("x" * 100_000 + "=1", "found an unknown key"),
        ("seed=" + "y" * 100_000, "wanted a whole number"),
        ("stop_after=" + "9" * 30 + "d", "wanted at most 1,000,000,000 seconds"),
        ("stop_after=" + "9" * 400 + "d", "wanted a time like 3h50m"),
        ("stop_after=३h", "wanted a time like 3h50m"),
    ],
    ids=lambda value: value[:20].encode("unicode_escape").decode(),
)
def test_an_override_that_cannot_be_is_answered_in_a_short_sentence(override: str, said: str) -> None:
    assert said in problem(override)


def test_overrides_without_number_are_refused() -> None:
    assert parse(*["seed=1"] * MOST_OVERRIDES).seed == 1
    assert "overrides, wanted at most 1,000; write them into a file" in problem(*["seed=1"] * (MOST_OVERRIDES + 1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ranks", "-1"], "--ranks: found -1, wanted 1 to 131,072"),
        (["--ranks", "0"], "--ranks: found 0, wanted 1"),
        (["--ranks", "1" + "0" * 300], "--ranks: found 1000"),
        (["--ranks", "2", "--ranks-per-host", "0"], "--ranks-per-host: found 0, wanted 1"),
        (["--ranks", "2", "--ranks-per-host", "-1"], "--ranks-per-host: found -1, wanted 1"),
        (["local_ranks=5000000"], "local_ranks: found 5000000, wanted at most 1,024"),
    ],
)
def test_absurd_numbers_of_ranks_are_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", QUICKSTART, *options]) == 2
    assert said in capsys.readouterr().err


def test_ranks_beyond_any_machine_start_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", QUICKSTART, "local_ranks=5000000"]) == 2
    assert "local_ranks: found 5000000, wanted at most 1,024" in capsys.readouterr().err
    stage = "{context_length: 131072, steps: 1, global_batch: 1, sequence_parallel: 32768}"
    wide = ["model.width=65536", "model.maximum_context=131072", f"stages=[{stage}]", "local_ranks=null"]
    assert main(["train", QUICKSTART, *wide]) == 2
    assert "found 32,768, wanted at most 1,024 processes on one machine" in capsys.readouterr().err


def test_digits_of_other_scripts_are_no_number_of_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, option in (("check", "--ranks"), ("check", "--ranks-per-host"), ("plan", "--nodes")):
        with pytest.raises(SystemExit):
            main([verb, QUICKSTART, option, "२"])
        assert f"argument {option}: invalid" in capsys.readouterr().err
