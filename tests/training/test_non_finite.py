"""Steps that are not finite are skipped, then rolled back and passed over, then end the run: in real runs, in which the
windows over the genome's N run are the bad ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hyena_ds.checkpoints.manifest import RunState, read_checkpoint
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.schema import RunConfig
from hyena_ds.config.survival import NonFiniteConfig
from hyena_ds.data.provenance import consumed
from hyena_ds.monitoring.spikes import WINDOW, LossHistory
from hyena_ds.training.non_finite import Consequence, consequence, in_a_row, rolled_back
from tests.training.runs import UNREPEATABLE, ends_of_ranks, make_shards, write_config

N_RUN = (2000, 2040)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


def _bad(config: Path) -> dict[int, list[str]]:
    """Steps that read of the N run, and the samples that do, as messages name them."""
    run = load_yaml(config, RunConfig)
    found = {}
    for step in range(run.total_steps):
        over = [str(s) for s in consumed(run, step) if s.start < N_RUN[1] and s.end > N_RUN[0]]
        if over:
            found[step] = over
    return found


def _rows(run: Path) -> list[dict[str, Any]]:
    """Training rows without what no two runs share. Raises ValueError at NaN or infinity, which are no JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(f"metrics.jsonl holds {constant}")

    rows = [json.loads(line, parse_constant=refuse) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in UNREPEATABLE} for row in rows if "validation_loss" not in row]


@pytest.mark.slow
def test_a_run_skips_stops_resumes_rolls_back_and_ends_where_one_that_skips_all_of_them_ends(
    shards: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", shards, seed=8, non_finite={"skips": 1, "roll_backs": 0})
    bad = _bad(config)
    assert list(bad) == [3, 6, 7], "the seed gives other steps than this test is about"

    def train(*overrides: str) -> list[tuple[int, str]]:
        return ends_of_ranks("tests.training.poisoned_rank", ["train", str(config), *overrides], 2)

    whole = train("name=whole", "non_finite.skips=5")
    assert [code for code, _ in whole] == [0, 0], whole[0][1]
    for step, samples in bad.items():
        assert f"step {step + 1}: skipped, the loss is inf; samples: {', '.join(samples)}\n" in whole[0][1]
    wanted = _rows(tmp_path / "runs" / "whole")
    assert [row["step"] for row in wanted] == list(range(1, 11))
    assert [row["step"] - 1 for row in wanted if row.get("skipped")] == list(bad)
    assert all(row["loss"] is None and row["gradient_norm"] is None for row in wanted if row.get("skipped"))

    stopped = train()
    assert [code for code, _ in stopped] == [3, 3]
    sentences = [line for _, output in stopped for line in output.splitlines() if "hyena-ds: error" in line]
    assert len(sentences) == 1
    assert sentences[0].startswith("hyena-ds: error: step 8: the loss is")
    assert f"samples: {', '.join(bad[7])};" in sentences[0]
    assert not any("Traceback" in output for _, output in stopped)

    resumed = train("non_finite.roll_backs=1")
    assert [code for code, _ in resumed] == [0, 0], resumed[0][1]
    assert "resuming after step 6" in resumed[0][1]
    assert "rolled back to step 6; nothing will be trained on these steps: 7, 8" in resumed[0][1]
    rows = _rows(tmp_path / "runs" / "run")
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert [row["step"] - 1 for row in rows if row.get("passed_over")] == [6, 7]
    for ours, theirs in zip(rows, wanted, strict=True):
        assert ours == theirs or (ours["passed_over"] and theirs["skipped"])
    final = "checkpoints/step-00000010"
    ours, theirs = (load_file(tmp_path / "runs" / name / final / "weights.safetensors") for name in ("run", "whole"))
    assert all((ours[key] == theirs[key]).all() for key in theirs)
    record = read_checkpoint(tmp_path / "runs" / "run" / final).record
    state = record.state
    assert (state.skipped, state.passed_over, state.roll_backs, record.updates) == ((3,), (6, 7), 1, 7)


@pytest.mark.slow
def test_a_run_whose_first_steps_are_bad_is_rolled_back_to_its_start(shards: Path, tmp_path: Path) -> None:
    stage = {"context_length": 32, "steps": 4, "global_batch": 6, "micro_batch_size": 1}
    config = write_config(
        tmp_path / "config.yaml", shards, seed=111, local_ranks=1, stages=[stage], non_finite={"skips": 1}
    )
    assert list(_bad(config)) == [0, 1], "the seed gives other steps than this test is about"
    arguments = ["train", str(config)]
    ((code, output),) = ends_of_ranks("tests.training.poisoned_rank", arguments, 1, POISON="gradient")
    assert code == 0, output
    assert "but the gradient norm is not finite" in output
    assert "rolled back to step 0; nothing will be trained on these steps: 1, 2" in output
    rows = _rows(tmp_path / "runs" / "run")
    assert [(row["step"], row.get("passed_over", False)) for row in rows] == [
        (1, True),
        (2, True),
        (3, False),
        (4, False),
    ]


def test_so_many_in_a_row_are_skipped_then_rolled_back_then_the_end() -> None:
    policy = NonFiniteConfig(skips=2, roll_backs=1)
    state = RunState(10, 0, 0, skipped=(3, 4, 5, 8, 9))
    assert in_a_row(state) == 2
    assert consequence(state, policy) is Consequence.SKIP
    third = RunState(11, 0, 0, skipped=(3, 4, 5, 8, 9, 10))
    assert consequence(third, policy) is Consequence.ROLL_BACK
    back = rolled_back(third, RunState(7, 0, 0, skipped=(3, 4, 5)))
    assert (back.step, back.skipped, back.passed_over, back.roll_backs) == (7, (3, 4, 5), (8, 9, 10), 1)
    assert consequence(RunState(14, 0, 0, (3, 4, 5, 11, 12, 13), (8, 9, 10), 1), policy) is Consequence.STOP
    # What was passed over is neither skipped again nor does it count among those in a row.
    assert in_a_row(RunState(12, 0, 0, (3, 4, 5, 11), (8, 9, 10), 1)) == 1


def test_a_spike_is_measured_from_the_steps_before_and_the_same_after_a_resume() -> None:
    generator = random.Random(3)
    losses = [1.3 + generator.gauss(0, 0.01) for _ in range(3 * WINDOW)]
    losses[250] += 0.1
    history, rows, spikes = LossHistory(), [], []
    for number, loss in enumerate(losses):
        spikes.append(history.spike(loss))
        history.add(loss)
        rows.append(json.loads(json.dumps({"step": number + 1, "loss": loss})))
    assert spikes[:20] == [None] * 20 and None not in spikes[20:]
    assert spikes[250] == max(spike for spike in spikes if spike is not None) and 8 < spikes[250] < 12
    rows[240:240] = [{"step": 240, "validation_loss": 9.0}, {"step": 240, "loss": None, "skipped": True}]
    resumed = LossHistory(rows[:252])
    assert resumed.spike(losses[250]) == spikes[250]
    flat = LossHistory([{"step": n, "loss": 1.0} for n in range(30)])
    assert flat.spike(2.0) is None
