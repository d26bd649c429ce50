"""`hyena-ds plan`: what it says, that its cures work by its own model, and that it takes no torch."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyena_ds.cli import main
from hyena_ds.config.arithmetic import plan_stages
from hyena_ds.config.loading import load_yaml
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import KEPT_UNITS, PolicyName
from hyena_ds.config.schedule import StageConfig
from hyena_ds.config.schema import DataConfig, RunConfig, SourceConfig
from hyena_ds.cost.devices import GIB, PUBLISHED, Cluster, Links, published_device
from hyena_ds.cost.shape import KernelsName, StepShape, shape_of_stage
from hyena_ds.cost.step_time import PARTS, step_time
from hyena_ds.planning.forecast import WORTH, Search, cheapest_cure, forecast, predict
from hyena_ds.planning.report import describe_plan
from tests.paths import ROOT
from tests.planning.machines import calibration

LARGE = load_yaml(ROOT / "configs" / "large-1m.yaml", RunConfig)
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def cluster(device: str = "h200", nodes: int = 1, devices: int = 8, gib: float | None = None) -> Cluster:
    from dataclasses import replace

    found = published_device(device)
    return Cluster(nodes, devices, found if gib is None else replace(found, memory=gib * GIB))


def one_stage(length: int, sequences: int, micro: int, sp: int = 1, policy: str = "fastest") -> RunConfig:
    stage = StageConfig(length, 10, micro, global_batch=sequences, sequence_parallel=sp)
    data = DataConfig((SourceConfig("shards"),))
    return RunConfig("run", ModelConfig(256, 8, length), data, (stage,), activation_policy=policy)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_that_ships_is_planned_on_a_gpu_it_asks_for(path: Path) -> None:
    config = load_yaml(path, RunConfig)
    ranks = config.local_ranks or config.widest_sequence_parallel
    machine = cluster("a100", devices=ranks)
    found = forecast(config, machine)
    assert len(found) == len(config.schedule)
    for stage in found:
        assert stage.prediction.fits and stage.seconds > 0
        assert set(stage.prediction.time.parts) == set(PARTS)
        assert min(stage.prediction.time.parts.values()) >= 0
        assert min(stage.prediction.memory.parts.values()) >= 0


@pytest.mark.parametrize(
    ("gib", "setting"),
    [
        (60.0, "stages.0.sequence_parallel: 8"),  # nothing is recomputed, and exchanges run beside transforms
        (25.0, "stages.0.sequence_parallel: 8"),
        (12.0, "activation_policy: balanced and stages.0.sequence_parallel: 8"),
        (6.2, "activation_policy: lean and stages.0.sequence_parallel: 8"),
    ],
)
def test_what_does_not_fit_gets_the_cheapest_change_and_that_fits(gib: float, setting: str) -> None:
    config, machine = one_stage(1 << 19, 8, 1), cluster(gib=gib)
    (found,) = forecast(config, machine)
    assert not found.prediction.fits and found.cure is not None
    assert found.cure.prediction.fits
    told = "\n".join(describe_plan(config, machine, [found]))
    assert "does not fit" in told and f"cheapest change: {setting}: " in told


@pytest.mark.parametrize("gib", [90.0, 60.0, 40.0, 25.0, 12.0, 9.0])
def test_a_cure_typed_into_the_config_is_the_one_that_was_predicted(gib: float, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: run\nmodel: {width: 256, layers: 8, maximum_context: 524288}\ndata: {sources: [{shards: none}]}\n"
        "stages: [{context_length: 524288, steps: 10, micro_batch_size: 2, global_batch: 16}]\nactivation_policy: fastest\n"
    )
    machine = cluster(gib=gib)
    (before,) = forecast(load_yaml(path, RunConfig), machine)
    if before.prediction.fits:
        return
    assert before.cure is not None and before.cure.ranks == machine.ranks
    changes = [setting.replace(": ", "=") for setting in before.cure.settings]
    (after,) = forecast(load_yaml(path, RunConfig, changes), machine)
    assert after.prediction.fits
    assert after.prediction.time.seconds == pytest.approx(before.cure.prediction.time.seconds)


def test_more_machines_are_named_when_these_do_not_do() -> None:
    config, machine = one_stage(1 << 24, 8, 1, sp=8), cluster("a100-40gb")
    (found,) = forecast(config, machine)
    assert found.cure is not None and found.cure.ranks > 8 and found.cure.ranks % 8 == 0
    assert found.cure.prediction.fits
    assert f" on {found.cure.ranks:,} ranks: " in "\n".join(describe_plan(config, machine, [found]))


def test_where_nothing_helps_that_is_said() -> None:
    config, machine = one_stage(1 << 24, 1, 1), cluster(devices=1, gib=3.0)
    (plan,) = plan_stages(config, 1)
    assert cheapest_cure(config, plan, machine, Search()) is None
    assert "shorten the context or narrow the model" in "\n".join(
        describe_plan(config, machine, forecast(config, machine))
    )


def test_a_better_grid_fits_and_is_faster() -> None:
    machine = cluster()
    for stage in forecast(LARGE, machine):
        if stage.better is not None:
            assert stage.better.fits
            assert stage.better.time.seconds <= WORTH * stage.prediction.time.seconds
            assert stage.better.shape.sequences == stage.prediction.shape.sequences
            assert stage.better.shape.ranks == machine.ranks


def test_a_sequence_that_is_cut_for_no_reason_is_told_so() -> None:
    (found,) = forecast(one_stage(1024, 64, 1, sp=8), cluster())
    assert found.better is not None and found.better.shape.sequence_parallel == 1


def test_exchanges_between_machines_cost_more_than_inside_one() -> None:
    config = one_stage(1 << 20, 8, 1, sp=16, policy="leanest")
    (plan,) = plan_stages(config, 16)
    shape = shape_of_stage(config, plan, on_cpu=False)
    two, one = (step_time(shape, cluster(nodes=n, devices=m)).parts["exchange"] for n, m in ((2, 8), (1, 16)))
    assert two > 2 * one > 0


def test_leaner_policies_take_less_memory_and_more_time() -> None:
    machine = cluster(nodes=1, devices=1)
    found = []
    for policy in KEPT_UNITS:
        config = one_stage(1 << 18, 1, 1, policy=policy)
        (plan,) = plan_stages(config, 1)
        found.append(predict(shape_of_stage(config, plan, on_cpu=False), machine))
    memory, seconds = [f.memory.total for f in found], [f.time.seconds for f in found]
    assert memory == sorted(memory, reverse=True) and seconds == sorted(seconds)


def test_the_command_takes_no_torch_and_tells_every_stage() -> None:
    program = "import sys; sys.modules['torch'] = None; from hyena_ds.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "plan", "configs/large-1m.yaml", "--nodes", "2", "--device", "a100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "6,550,528 weights, ZeRO stage 1, bfloat16, on 2 x 8 a100, 80 GiB each" in done.stdout
    assert re.search(r"1,000,000 +dp 2 x sp 8 +128 = 2 x 1 x 64 +fastest", done.stdout)
    assert "peak memory of a device by part" in done.stdout and "time of a step by part" in done.stdout
    assert "checkpoint: 100 MiB, 300 MiB for the newest 3" in done.stdout


def test_this_machine_is_planned_from_its_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hyena_ds.planning.calibration import write_calibration

    path = tmp_path / "calibration.json"
    write_calibration(path, calibration())
    arguments = ["plan", str(ROOT / "configs" / "quickstart.yaml"), "--device", "this", "--calibration", str(path)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "on 1 x 2 this, 12 GiB each (measured: a processor, 2 cores)" in told
    assert "kernels: portable (no CUDA device)" in told
    assert main([*arguments, "--devices-per-node", "8"]) == 2
    assert "wanted those of 8" in capsys.readouterr().err


def test_a_plan_that_does_not_fit_returns_1(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", str(ROOT / "configs" / "large-1m.yaml"), "activation_policy=fastest"]
    assert main([*arguments, "--device", "a100-40gb"]) == 0
    assert main([*arguments, "stages.10.micro_batch_size=16", "--device", "a100-40gb"]) == 1
    assert "stage 10: does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none.yaml"], "none.yaml: cannot read the config"),
        (["configs/quickstart.yaml", "--device", "abacus"], "--device: found 'abacus', wanted b200, h200"),
        (["configs/quickstart.yaml", "--nodes", "0"], "--nodes: found 0, wanted 1 to 131,072"),
        (["configs/quickstart.yaml", "--plot", "x.png"], "--plot: wanted --scaling with it"),
        (["configs/large-1m.yaml", "--scaling", "--plot", "x.txt"], "--plot x.txt: wanted a name that ends in .png"),
        (
            ["configs/quickstart.yaml", "--calibrate", "--device", "a100"],
            "with --calibrate, which measures this machine",
        ),
        (["configs/large-1m.yaml", "--devices-per-node", "4"], "found 8 with 4 ranks, wanted a divisor"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["plan", *arguments]) == 2
    told = capsys.readouterr().err
    assert text in told and told.count("\n") == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_device_reaches_less_than_its_data_sheet(name: str) -> None:
    device, sheet = published_device(name), PUBLISHED[name]
    links: Links = device.rates.links
    assert device.rates.gemm_bfloat16 < sheet.bfloat16 and device.rates.copy < sheet.bandwidth
    assert links.inside < sheet.link and links.between < sheet.network and sheet.source


@pytest.mark.parametrize("setting", ["model.width=3", "model.layers=10000"])
def test_a_model_that_fits_nowhere_has_a_scaling_study_that_says_so(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of width 3 cuts no sequence, and 128 sequences are fewer than the rows of 1,024 devices."""
    settings = [setting, "stages=[{context_length: 1024, steps: 1, global_batch: 2}]"]
    plot = tmp_path / "study.png"
    assert main(["plan", str(ROOT / "configs" / "quickstart.yaml"), *settings, "--scaling", "--plot", str(plot)]) == 0
    assert "| | no grid fits |" in capsys.readouterr().out and plot.stat().st_size > 1000


def test_a_batch_that_divides_in_thousands_of_ways_is_planned_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    stage = "{context_length: 1024, steps: 1, global_batch: 73513440, micro_batch_size: 73513440}"
    settings = ["model.width=55440", "model.layers=10000", f"stages=[{', '.join([stage] * 16)}]"]
    began = time.process_time()
    assert main(["plan", str(ROOT / "configs" / "quickstart.yaml"), *settings, "--devices-per-node", "1"]) == 1
    assert time.process_time() - began < 20.0  # it took minutes
    assert "stage 15: its batch divides in too many ways to look at all other grids" in capsys.readouterr().out


def test_a_stage_of_one_token_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    stage = "stages=[{context_length: 1, steps: 1, global_batch: 2}]"
    assert main(["plan", str(ROOT / "configs" / "quickstart.yaml"), stage, "--devices-per-node", "1"]) == 0
    assert "dp 1 x sp 1" in capsys.readouterr().out


def test_the_absurd_of_machines_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs" / "quickstart.yaml")
    for options, said in (
        (["--nodes", "1" + "0" * 30], "--nodes: found 1000"),
        (["--devices-per-node", "-1"], "--devices-per-node: found -1, wanted 1 to 131,072"),
        (["--nodes", "131072", "--devices-per-node", "2"], "--nodes x --devices-per-node: found 262144"),
        (["model.width=1000000000"], "model.width: found 1000000000, wanted at most 65,536"),
    ):
        assert main(["plan", config, *[o for o in options if "=" in o], *[o for o in options if "=" not in o]]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("length", "batch", "policy", "kernels", "measured"),
    [
        (1 << 20, 1, "fastest", "triton", 0.65),
        (1 << 20, 1, "lean", "triton", 0.82),
        (1 << 20, 1, "leanest", "triton", 1.03),
        (131072, 1, "fastest", "triton", 0.099),
        (131072, 1, "lean", "triton", 0.121),
        (1024, 16, "fastest", "triton", 0.068),
        (1 << 20, 1, "fastest", "portable", 1.26),
        (1 << 20, 1, "lean", "portable", 1.47),
        (131072, 1, "fastest", "portable", 0.159),
    ],
)
def test_steps_that_an_h200_took_are_predicted(
    length: int, batch: int, policy: PolicyName, kernels: KernelsName, measured: float
) -> None:
    """Seconds of docs/results/card.md."""
    model = ModelConfig(256, 8, length)
    shape = StepShape(model, length, batch, policy=policy, precision="bfloat16", kernels=kernels)
    assert step_time(shape, cluster(devices=1)).seconds == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("kernels", "said"),
    [
        ("auto", "kernels: triton (auto: where the check at the start finds them right)"),
        ("triton", "kernels: triton (as the config says)"),
        ("portable", "kernels: portable (as the config says)"),
    ],
)
def test_a_plan_says_which_kernels_it_reckons_with(kernels: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "configs" / "large-1m.yaml"), f"kernels={kernels}"]) == 0
    assert said in capsys.readouterr().out.splitlines()


def test_tritons_kernels_take_less_time_than_the_portable_ones() -> None:
    seconds = []
    for kernels in ("portable", "triton"):
        config = load_yaml(ROOT / "configs" / "large-1m.yaml", RunConfig, [f"kernels={kernels}"])
        seconds.append(forecast(config, cluster())[-1].seconds)
    assert seconds[1] < 0.9 * seconds[0]
