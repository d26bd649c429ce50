"""`hyena-ds embed`: every vector is the plain model's in float64, whatever the batch, the padding, the ranks and the kill."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from hyena_ds.predict import sequences
from hyena_ds.predict.embed import embeddings
from hyena_ds.predict.predictor import Predictor
from tests.distributed.work import lively_model, relative_error
from tests.model.plain import plain_hidden, plain_residual
from tests.predict.verbs import (
    CONFIG,
    FULL,
    check_kill,
    check_refused,
    complement,
    ids_of,
    on_ranks,
    run,
    save_genome,
    save_model,
)

LENGTHS = (1, 2, 37, 500, 64, 5, 300)
WIDTH = CONFIG.width


def wanted_states(model: torch.nn.Module, sequence: str, layer: int | None = None) -> np.ndarray:
    """States (n, D) of a sequence in the plain model in float64."""
    parameters = {name: parameter.double() for name, parameter in model.named_parameters()}
    ids = ids_of(sequence)
    if layer is None or layer == CONFIG.layers:
        states = plain_hidden(parameters, CONFIG, ids)
    else:
        states = plain_residual(parameters, CONFIG, ids, layer)
    return states[0].detach().numpy()


POOLED = {"mean": lambda x: x.mean(0), "last": lambda x: x[-1], "max": lambda x: x.max(0)}


def some_sequences() -> list[str]:
    generator = np.random.default_rng(11)
    return ["".join(generator.choice(list("ACGTacgtN"), length)) for length in LENGTHS]


def save_table(path: Path, labels: list[object] | None = None, texts: list[str] | None = None) -> list[str]:
    """A table of sequences with names and labels, by the end of its name; the sequences."""
    texts = some_sequences() if texts is None else texts
    columns = {
        "other": [f"x{n}" for n in range(len(texts))],
        "label": labels or [n % 3 for n in range(len(texts))],
        "sequence": texts,
        "name": [f"s{n}" for n in range(len(texts))],
    }
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        rows = [columns, *zip(*columns.values(), strict=True)]
        path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))
    return texts


def read(path: Path) -> np.ndarray:
    """Vectors (n, D) of an output."""
    if path.suffix == ".parquet":
        return np.array(pq.read_table(path)["embedding"].to_pylist(), dtype=np.float32)
    if path.suffix == ".zarr":
        return np.asarray(zarr.open_group(path, mode="r")["embedding"][:])
    return np.asarray(anndata.read_h5ad(path).X)


def near(found: object, wanted: object, bound: float = 1e-5) -> bool:
    return relative_error(torch.as_tensor(np.asarray(found)), torch.as_tensor(np.asarray(wanted))) <= bound


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("pool", POOLED)
def test_a_row_of_a_table_has_the_vector_of_the_plain_model_and_its_own_columns(
    tmp_path: Path, suffix: str, pool: str
) -> None:
    weights, model = save_model(tmp_path)
    texts = save_table(tmp_path / f"in{suffix}")
    out = tmp_path / "out.parquet"
    assert run("embed", weights, tmp_path / f"in{suffix}", "--output", out, "--pool", pool) == 0
    table = pq.read_table(out)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), WIDTH)
    for number, (row, text) in enumerate(zip(table.to_pylist(), texts, strict=True)):
        assert near(row["embedding"], POOLED[pool](wanted_states(model, text))), number
        about = {key: row[key] for key in ("start", "end", "strand", "name", "label")}
        assert about == {"start": 0, "end": len(text), "strand": "+", "name": f"s{number}", "label": number % 3}
    assert json.loads(table.schema.metadata[b"hyena_ds"])["pool"] == pool


@pytest.mark.parametrize(("layer", "blocks"), [("0", 0), ("1", 1), ("2", None), ("last", None)])
@pytest.mark.parametrize("suffix", [".zarr", ".h5ad", ".parquet"])
def test_any_layer_in_any_form(tmp_path: Path, layer: str, blocks: int | None, suffix: str) -> None:
    weights, model = save_model(tmp_path)
    texts = save_table(tmp_path / "in.csv", labels=[*"uvwxyz", ""])
    out = tmp_path / f"out{suffix}"
    assert run("embed", weights, tmp_path / "in.csv", "--output", out, "--layer", layer) == 0
    assert near(read(out), np.stack([wanted_states(model, text, blocks).mean(0) for text in texts]))
    if suffix == ".zarr":
        group = zarr.open_group(out, mode="r")
        found = group["name"][:].tolist(), group["label"][:].tolist(), group["end"][:].tolist()
        assert group.attrs["layer"] == ("last" if blocks is None else blocks)
    elif suffix == ".h5ad":
        data = anndata.read_h5ad(out)
        found = data.obs["name"].tolist(), data.obs["label"].tolist(), data.obs["end"].tolist()
        assert data.uns["hyena_ds"]["pool"] == "mean"
    else:
        table = pq.read_table(out).to_pydict()
        found = table["name"], table["label"], table["end"]
    assert found == ([f"s{n}" for n in range(len(texts))], [*"uvwxyz", ""], list(LENGTHS))


@pytest.mark.parametrize("strand", ["+", "-", "both", "mean"])
@pytest.mark.parametrize("pool", ["mean", "none"])
def test_regions_on_every_strand(tmp_path: Path, strand: str, pool: str) -> None:
    weights, model = save_model(tmp_path)
    genome, letters = save_genome(tmp_path)
    places = (("chrB", 10, 90), ("chrA", 290, 700), ("chrB", 3, 4))
    bed = tmp_path / "regions.bed"
    bed.write_text("".join(f"{contig}\t{start}\t{end}\tr{start}\n" for contig, start, end in places))
    out = tmp_path / "out.zarr"
    more = ("--regions", bed, "--strand", strand, "--pool", pool)
    assert run("embed", weights, genome, "--output", out, *more) == 0
    group = zarr.open_group(out, mode="r")
    wanted, rows = [], []
    for contig, start, end in places:
        piece = letters[contig][start:end]
        plus, minus = wanted_states(model, piece), wanted_states(model, complement(piece))
        of_strands = {"+": [plus], "-": [minus], "both": [plus, minus], "mean": [(plus + minus[::-1]) / 2]}[strand]
        wanted += of_strands
        signs = {"both": "+-", "mean": "."}.get(strand, strand)
        rows += [(contig, start, end, sign, f"r{start}") for sign in signs]
    names = ("contig", "start", "end", "strand", "name")
    assert list(zip(*(group[name][:].tolist() for name in names), strict=True)) == rows
    found = group["embedding"][:]
    if pool == "mean":
        assert near(found, np.stack([states.mean(0) for states in wanted]))
        return
    offsets = group["offsets"][:]
    assert offsets.tolist() == [0, *np.cumsum([len(states) for states in wanted])]
    for number, states in enumerate(wanted):
        assert near(found[offsets[number] : offsets[number + 1]], states), number


def test_vectors_do_not_move_with_batch_mates_padding_or_order(tmp_path: Path) -> None:
    predictor = Predictor(lively_model(CONFIG))
    ids = [ids_of(text)[0].numpy().astype(np.uint8) for text in some_sequences()]
    for pool in ("mean", "last", "max", "none"):
        together = embeddings(predictor, ids, len(ids), None, pool)
        reversed_ = embeddings(predictor, ids[::-1], 3, None, pool)[::-1]
        for number, ids_n in enumerate(ids):
            alone = embeddings(predictor, [ids_n], None, None, pool)[0]
            assert near(together[number], alone, 1e-6) and near(reversed_[number], alone, 1e-6), (pool, number)


def test_padding_on_the_left_would_move_them() -> None:
    """Why padding is on the right: the same tokens behind three of padding have other states."""
    predictor = Predictor(lively_model(CONFIG))
    ids = ids_of(some_sequences()[2])
    alone = predictor.hidden(ids)
    left, right = (torch.cat(pair, 1) for pair in ((torch.full((1, 3), 4), ids), (ids, torch.full((1, 3), 4))))
    assert relative_error(predictor.hidden(left)[:, 3:], alone) > 1e-2
    assert relative_error(predictor.hidden(right)[:, :-3], alone) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "sequence_parallel", "pool"),
    [(2, 2, "mean"), (4, 2, "max"), (2, 2, "none"), *([(2, 1, "mean")] if FULL else [])],
)
def test_ranks_and_grids_change_nothing(tmp_path: Path, pool: str, ranks: int, sequence_parallel: int) -> None:
    weights, _ = save_model(tmp_path)
    save_table(tmp_path / "in.csv")
    words = ("embed", weights, tmp_path / "in.csv", "--pool", pool, "--output")
    assert run(*words, tmp_path / "one.zarr") == 0
    on_ranks(ranks, sequence_parallel, *words, tmp_path / "many.zarr")
    assert near(read(tmp_path / "many.zarr"), read(tmp_path / "one.zarr"))


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "pool"), [(".h5ad", "mean"), (".zarr", "none")])
def test_what_was_killed_goes_on_to_the_same_bytes(tmp_path: Path, suffix: str, pool: str) -> None:
    weights, _ = save_model(tmp_path)
    generator = np.random.default_rng(3)
    # Five parts by their number of rows.
    texts = ["".join(generator.choice(list("ACGT"), 20)) for _ in range(20_000)]
    save_table(tmp_path / "in.parquet", texts=texts)
    output = tmp_path / f"out{suffix}"
    words = ("embed", weights, tmp_path / "in.parquet", "--output", output, "--pool", pool)
    check_kill(output, *words)


@pytest.mark.parametrize(
    ("source", "more", "said"),
    [
        ("in.csv", ["--layer", "3"], "--layer: found '3', wanted last or a number from 0 to the model's 2 layers"),
        ("in.csv", ["--layer", "first"], "--layer: found 'first', wanted last or a number"),
        ("in.csv", ["--context", "600"], "--context: found 600, wanted 1 to the model's maximum_context 512"),
        ("in.csv", ["--context", "400"], "in.csv: row 4 (s3) has 500 bases, wanted at most 400, --context; cut it"),
        ("in.csv", ["--regions", "r.bed"], "--regions: found a BED beside the table in.csv"),
        ("in.csv", ["--pool", "none"], "--output: found 'out.parquet' with --pool none, wanted a .zarr"),
        ("in.csv", ["--output", "out.npy"], "wanted a name that ends in .parquet or .zarr or .h5ad"),
        ("genome.fa", [], "genome.fa: chrA:0-1,500 has 1,500 bases, wanted at most 512, the model's maximum_context"),
        ("hollow.fa", [], "hollow.fa: record 'none' has no bases, wanted at least 1; leave it out"),
        ("nothing.csv", [], "nothing.csv: found an empty file, wanted a table with a column sequence"),
        ("none.csv", [], "none.csv: no such table; name an existing one"),
        ("head.csv", [], "head.csv: found no rows, wanted sequences"),
        ("column.csv", [], "column.csv: found no column 'sequence' among name, seq; name a column of the table so"),
        ("twice.csv", [], "twice.csv: found the column 'sequence' twice, wanted one; rename the other"),
        ("hole.csv", [], "hole.csv: row 2: found an empty sequence, wanted bases; leave the row out"),
        ("letters.csv", [], "letters.csv: row 2: found '1' in the sequence, wanted letters; correct the table"),
        ("accent.csv", [], "accent.csv: row 1: found 'byte 195' in the sequence, wanted letters"),
        (
            "protein.csv",
            [],
            "protein.csv: row 1: the sequence looks like protein: 4 of its 6 letters are not A C G T U N",
        ),
        (
            "ragged.csv",
            [],
            "ragged.csv: cannot be read as a table in text (CSV parse error: Row #3: Expected 2 columns, got 3",
        ),
        ("latin.csv", [], "latin.csv: cannot be read as a table in text"),
        ("wide.csv", [], "wide.csv: cannot be read as a table in text (a line has more than 4,096 bytes)"),
        ("cut.csv.gz", [], "cut.csv.gz: cannot be read as a table in text"),
        ("false.parquet", [], "false.parquet: cannot be read as a table in Parquet"),
        ("number.parquet", [], "number.parquet: found the column 'sequence' of type int64, wanted text"),
        ("lists.parquet", [], "lists.parquet: found the column 'label' of type list<element: int64>, wanted text or"),
        ("null.parquet", [], "null.parquet: row 2: found an empty sequence, wanted bases; leave the row out"),
    ],
)
def test_what_cannot_be_embedded_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    source: str,
    more: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if source == "wide.csv":
        monkeypatch.setattr(sequences, "_BLOCK", 1 << 12)
    weights, _ = save_model(tmp_path)
    save_genome(tmp_path)
    save_table(Path("in.csv"))
    texts = {
        "r.bed": "chrA\t0\t5\n",
        "hollow.fa": ">some\nACGT\n>none\n",
        "nothing.csv": "",
        "head.csv": "sequence,name\n",
        "column.csv": "name,seq\na,ACGT\n",
        "twice.csv": "sequence,sequence\nA,C\n",
        "hole.csv": "sequence,name\nACGT,a\n,b\n",
        "letters.csv": "sequence\nACGT\nAC1T\n",
        "accent.csv": "sequence\nACGTÄ\n",
        "protein.csv": "sequence\nMKVLAC\n",
        "ragged.csv": "sequence,name\nACGT,a\nACGT,a,b\n",
        "wide.csv": f"sequence\n{'A' * 9000}\n",
    }
    for name, text in texts.items():
        Path(name).write_text(text)
    Path("latin.csv").write_bytes(b"sequence\nAC\xe9GT\n")
    Path("cut.csv.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03abc")
    Path("false.parquet").write_bytes(b"PAR1 is how it begins")
    pq.write_table(pa.table({"sequence": [1, 2]}), "number.parquet")
    pq.write_table(pa.table({"sequence": ["A"], "label": [[1]]}), "lists.parquet")
    pq.write_table(pa.table({"sequence": ["A", None]}), "null.parquet")
    check_refused(capfd, said, "embed", weights, source, "--output", "out.parquet", *more)


def test_labels_of_a_parquet_keep_their_type_and_those_of_text_become_numbers_only_if_all_are(tmp_path: Path) -> None:
    weights, _ = save_model(tmp_path)
    kinds = {
        "in.parquet": ([True, None], [True, None]),
        "a.csv": ([0.5, 2], [0.5, 2.0]),
        "b.csv": (["01", "2"], [1, 2]),
    }
    kinds["c.csv"] = (["x", "2"], ["x", "2"])
    for name, (labels, wanted) in kinds.items():
        save_table(tmp_path / name, labels, ["ACGT", "AC"])
        for suffix in (".parquet", ".zarr"):
            assert run("embed", weights, tmp_path / name, "--output", tmp_path / f"{name}{suffix}") == 0
        assert pq.read_table(tmp_path / f"{name}.parquet")["label"].to_pylist() == wanted
        found = zarr.open_group(tmp_path / f"{name}.zarr", mode="r")["label"][:].tolist()
        assert found == (["True", ""] if wanted == [True, None] else wanted)


def test_large_text_and_dictionaries_of_a_parquet_are_text(tmp_path: Path) -> None:
    weights, _ = save_model(tmp_path)
    columns = {
        "sequence": pa.array(["ACGT", "AC"], pa.large_string()),
        "name": pa.array(["a", "a"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    assert run("embed", weights, tmp_path / "in.parquet", "--output", tmp_path / "out.parquet") == 0
    found = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert (found["end"], found["name"]) == ([4, 2], ["a", "a"]) and "label" not in found


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "anndata", None)
    weights, _ = save_model(tmp_path)
    save_table(tmp_path / "in.csv")
    assert run("embed", weights, tmp_path / "in.csv", "--output", tmp_path / "out.h5ad") == 2
    assert "anndata is not installed; pip install 'hyena-ds[anndata]'" in capfd.readouterr().err
