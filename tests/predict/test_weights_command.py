"""`hyena-ds weights`: what it says is so, what it writes loads the same, and a verdict is right about planted numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hyena_ds
from hyena_ds.cli import main
from hyena_ds.config.model import ModelConfig
from hyena_ds.genome.tokenizer import encode
from hyena_ds.model.backbone import HyenaDNA, build_model
from hyena_ds.weights.outputs import read_outputs, shipped_outputs
from hyena_ds.weights.published import write_weights
from tests.distributed.work import lively_model
from tests.model.plain import plain_hidden, plain_logits
from tests.weights import layouts

Said = Callable[[], tuple[str, str]]
CONFIG = ModelConfig(width=32, layers=2, inner_width=128, maximum_context=300, filter_shift=0.05)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: tuple(capsys.readouterr())


@pytest.fixture(scope="module")
def model() -> HyenaDNA:
    return lively_model(CONFIG)


@pytest.fixture
def file(tmp_path: Path, model: HyenaDNA) -> Path:
    path = tmp_path / "weights.safetensors"
    write_weights(path, CONFIG, {name: p.detach() for name, p in model.named_parameters()})
    return path


def test_show_says_what_weights_are(tmp_path: Path, said: Said) -> None:
    folder = layouts.lightning_folder(tmp_path, "d48_l3", wrap=True)
    report = tmp_path / "report.json"
    assert main(["weights", "show", str(folder), "--json", str(report), "--keys"]) == 0
    out, error = said()
    found = json.loads(report.read_text())
    digest = hashlib.sha256((folder / "weights.ckpt").read_bytes()).hexdigest()
    assert found["sha256"] == digest and digest in out
    assert (found["width"], found["layers"], found["inner_width"], found["maximum_context"]) == (48, 3, 192, 514)
    assert found["parameters"] == sum(p.numel() for p in hyena_ds.load_model(folder, 0.0).parameters())
    assert found["layout"] == "Lightning checkpoint of the published code" and found["left_out"] == [
        "train_torchmetrics.total"
    ]
    assert found["keys"]["model.backbone.layers.2.mlp.layer.fc1.bias"] == ["F32", [192]]
    assert "model.backbone.layers.2.mlp.layer.fc1.bias" in out and "[UNK] A C G T N (0 to 11 of 16 rows)" in out
    assert found["shift"] in (0.0, 0.05) and "chosen by the loss on hg38 chr2" in found["shift_from"]
    assert "nothing says the filter's shift" in error
    assert main(["weights", "show", str(folder), "--shift", "0.05"]) == 0
    out, error = said()
    assert "mlp.layer" not in out and not error and "given" in out


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_convert_writes_what_the_weights_were(name: str, tmp_path: Path, said: Said) -> None:
    source = layouts.LAYOUTS[name][0](tmp_path, "d32_l2")
    output = tmp_path / "new" / "ours.safetensors"
    assert main(["weights", "convert", str(source), str(output), "--shift", "0.05"]) == 0
    assert f"{output}: width 32, 2 layers, 130 tokens, shift 0.05" in said()[0]
    before, after = hyena_ds.load_model(source, 0.05), hyena_ds.load_model(output)
    assert before.config == after.config
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert [path.name for path in output.parent.iterdir()] == ["ours.safetensors"]


def test_convert_extends_and_keeps_what_is_there(file: Path, tmp_path: Path, said: Said) -> None:
    out = tmp_path / "out"
    out.mkdir()
    extend = ["--maximum-context", "1000", "--extension", "extrapolate"]
    assert main(["weights", "convert", str(file), str(out), *extend]) == 0
    assert hyena_ds.load_model(out).config == hyena_ds.load_model(file, None, 1000, "extrapolate").config
    extended = (out / "weights.safetensors").read_bytes()
    assert main(["weights", "convert", str(file), str(out)]) == 2
    assert "is there already; name another file, or replace it with --overwrite" in said()[1]
    assert main(["weights", "convert", str(file), str(out), "--overwrite", "--extension", "rescale"]) == 2
    assert "found one of maximum context and extension, wanted both" in said()[1]
    assert (out / "weights.safetensors").read_bytes() == extended
    assert main(["weights", "convert", str(file), str(out), "--overwrite"]) == 0
    before, after = (load_file(path) for path in (file, out / "weights.safetensors"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert hyena_ds.load_model(out).config == CONFIG


def planted(of: HyenaDNA, path: Path, genome: Path, **change: Any) -> Path:
    """Outputs of the model, computed plainly in float64, in a file as the shipped ones."""
    parameters = {name: p.detach().double() for name, p in of.named_parameters()}

    def logits(bases: str) -> torch.Tensor:
        ids = torch.from_numpy(encode(bases).copy()).long()
        return plain_logits(parameters, CONFIG, ids.unsqueeze(0))[0], ids

    lines = {"chr1": 0, "chr3:7-107": 1}
    records = {name: genome.read_text().split("\n")[2 * at + 1].upper() for name, at in lines.items()}
    regions = {}
    for name, bases in (("chr1:100-300", records["chr1"][100:300]), ("chr3:7-107", records["chr3:7-107"])):
        predicted, ids = logits(bases)
        losses = [torch.log_softmax(part, 1) for part in (predicted[:-1], predicted[:-1, 7:11])]
        regions[name] = [
            float(-losses[0].gather(1, ids[1:, None]).mean()),
            float(-losses[1].gather(1, ids[1:, None] - 7).mean()),
        ]
    hidden = plain_hidden(parameters, CONFIG, torch.tensor([[7, 8, 9, 10, 11, 7, 8, 9, 10]]))[0].mean(0)
    content = {"model": "me/planted", "source": "this test", "d_model": 32, "n_layer": 2, "l_max": 300}
    content |= {"input": "ACGTNACGT", "values": hidden.tolist(), "regions_hg38": regions, **change}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    """A contig of 400 bases, half in lower case, and a record that is called as a region."""
    generator = torch.Generator().manual_seed(4)
    letters = ["".join("ACGTacgt"[i] for i in torch.randint(0, 8, (n,), generator=generator)) for n in (400, 100)]
    path = tmp_path / "genome.fa"
    path.write_text(f">chr1\n{letters[0]}\n>chr3:7-107\n{letters[1]}\n")
    return path


def check(file: Path, outputs: Path, *more: str) -> list[str]:
    return ["weights", "check", str(file), "--outputs", str(outputs), *more]


def test_check_agrees_with_a_model_s_own_numbers(
    model: HyenaDNA, file: Path, genome: Path, tmp_path: Path, said: Said
) -> None:
    outputs, report = planted(model, tmp_path / "planted.json", genome), tmp_path / "report.json"
    assert main(check(file, outputs, "--genome", str(genome), "--json", str(report))) == 0
    out, _ = said()
    assert "against me/planted (this test)" in out and "not checked" not in out and "agrees: the largest" in out
    found = json.loads(report.read_text())
    assert found["agrees"] and found["largest_difference"] < 1e-4 and len(found["rows"]) == 3
    assert main(check(file, outputs)) == 0
    out, _ = said()
    assert out.count("needs hg38; give --genome FASTA") == 2 and "mean hidden state of ACGTNACGT" in out


def test_check_differs_from_other_weights_and_from_another_shift(
    model: HyenaDNA, file: Path, genome: Path, tmp_path: Path, said: Said
) -> None:
    outputs = planted(model, tmp_path / "planted.json", genome)
    assert main(check(file, outputs, "--genome", str(genome), "--shift", "0.5")) == 1
    assert "DIFFERS: the largest difference is" in said()[0]
    other = tmp_path / "other.safetensors"
    write_weights(other, CONFIG, dict(build_model(CONFIG, 9).named_parameters()))
    assert main(check(other, outputs)) == 1
    numbers = json.loads(outputs.read_text())
    numbers["regions_hg38"]["chr1:100-300"][1] += 0.002
    outputs.write_text(json.dumps(numbers))
    report = tmp_path / "report.json"
    said()
    assert main(check(file, outputs, "--genome", str(genome), "--json", str(report))) == 1
    found = json.loads(report.read_text())
    assert found["largest_difference"] == pytest.approx(0.002, abs=1e-4) and not found["agrees"]
    out, _ = said()
    assert [line.split()[2] for line in out.splitlines() if line.endswith(" differs")] == ["chr1:100-300"]


def test_weights_that_give_no_numbers_differ(model: HyenaDNA, genome: Path, tmp_path: Path, said: Said) -> None:
    outputs, broken = planted(model, tmp_path / "planted.json", genome), tmp_path / "broken.safetensors"
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    parameters["backbone.final_norm.bias"][3] = float("nan")
    write_weights(broken, CONFIG, parameters)
    report = tmp_path / "report.json"
    assert main(check(broken, outputs, "--json", str(report))) == 1
    assert "DIFFERS: the largest difference is inf" in said()[0]
    assert json.loads(report.read_text())["largest_difference"] is None


def test_regions_that_a_genome_lacks_are_said(
    model: HyenaDNA, file: Path, genome: Path, tmp_path: Path, said: Said
) -> None:
    numbers = {"chr1:100-300": [1.0, 1.0], "chr1:300-500": [1.0, 1.0], "chr9:1-100": [1.0, 1.0], "chr1:0-9": [1.0, 1.0]}
    text = genome.read_text()
    genome.write_text(text.replace(text[7], "N", 1))
    outputs = planted(model, tmp_path / "planted.json", genome, regions_hg38=numbers)
    assert main(check(file, outputs, "--genome", str(genome))) == 1
    out, _ = said()
    assert f"not checked: chr1:300-500: {genome} has 400 bases of chr1" in out
    assert f"not checked: chr9:1-100: {genome} has no such record of chr9" in out
    assert f"not checked: chr1:0-9: {genome} has letters there that are no bases; is it hg38?" in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"d_model": 64},
            "the numbers are of a model with width 64, layers 2, maximum_context 300, the weights have width 32",
        ),
        ({"values": [1.0] * 31}, "values: found 31 numbers, wanted 32, the model's width"),
        ({"values": [True] * 32}, "values: wanted a list of numbers"),
        ({"values": [float("nan")] * 32}, "values: wanted a list of numbers"),
        ({"input": ""}, "values: wanted a list of numbers, with the sequence that they are of as input"),
        ({"model": 5}, "found model, source or input that is no text"),
        ({"values": [], "input": "", "regions_hg38": {}}, "found neither values nor regions_hg38"),
        ({"regions_hg38": []}, "found neither values nor regions_hg38"),
        ({"regions_hg38": {"chr1": [1, 1]}}, "regions_hg38: found 'chr1', wanted CONTIG:START-END"),
        ({"regions_hg38": {"chr1:5-5": [1, 1]}}, "regions_hg38: found 'chr1:5-5', wanted"),
        ({"regions_hg38": {"chr1:1-9": [1]}}, "regions_hg38: found 'chr1:1-9', wanted"),
        ({"values": [], "input": ""}, "none of its numbers can be checked (chr1:100-300: needs hg38"),
    ],
    ids=range(12),
)
def test_outputs_that_cannot_be_are_named(
    change: dict[str, Any], words: str, model: HyenaDNA, file: Path, genome: Path, tmp_path: Path, said: Said
) -> None:
    outputs = planted(model, tmp_path / "planted.json", genome, **change)
    assert main(check(file, outputs)) == 2
    assert f"{outputs}: {words}" in said()[1]


def test_a_file_of_outputs_that_is_none_is_named(file: Path, tmp_path: Path, said: Said) -> None:
    for content in ("", "[]", "[" * 100_000, " " * (5 << 20)):
        (tmp_path / "outputs.json").write_text(content)
        assert main(check(file, tmp_path / "outputs.json")) == 2
        assert "found no JSON object of at most 4,194,304 bytes" in said()[1]
    assert main(check(file, tmp_path / "absent.json")) == 2
    assert "absent.json: cannot be read (No such file or directory); name a JSON file of outputs" in said()[1]
    assert main(["weights", "check", str(file)]) == 2
    assert "found no published outputs of a model with width 32, layers 2, maximum_context 300" in said()[1]


@pytest.mark.parametrize(
    ("layers", "limit", "name", "regions", "hidden"),
    [(4, 32_770, "small-32k", 8, 0), (8, 160_002, "medium-160k", 0, 256), (8, 1_000_002, "large-1m", 0, 256)],
)
def test_the_shipped_outputs_are_found_by_the_model_s_shape(
    layers: int, limit: int, name: str, regions: int, hidden: int
) -> None:
    found = shipped_outputs(ModelConfig(width=256, layers=layers, maximum_context=limit))
    assert found == read_outputs(found.path) and f"hyenadna-{name}-seqlen-hf" in found.model
    assert (len(found.regions), len(found.hidden_D)) == (regions, hidden) and "github.com/" in found.source


@pytest.mark.slow
def test_weights_of_the_published_shape_are_judged_against_the_published_numbers(tmp_path: Path, said: Said) -> None:
    config = ModelConfig(width=256, layers=8, maximum_context=160_002, filter_shift=0.05)
    path = tmp_path / "weights.safetensors"
    write_weights(path, config, dict(build_model(config, 1).named_parameters()))
    assert main(["weights", "check", str(path)]) == 1
    out, _ = said()
    assert "hyenadna-medium-160k-seqlen-hf" in out and "256" in out and "DIFFERS" in out
