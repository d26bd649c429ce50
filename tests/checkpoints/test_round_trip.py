"""What was saved on some ranks under one ZeRO stage is loaded on others under another, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hyena_ds
from hyena_ds.checkpoints.listing import list_checkpoints
from hyena_ds.checkpoints.manifest import Checkpoint, Manifest, Record, RunState, Written, read_checkpoint, write_file
from hyena_ds.checkpoints.saved_state import SavedState
from hyena_ds.data.shards import sha256_of
from hyena_ds.errors import UserError
from hyena_ds.parallel.nodes import Nodes
from hyena_ds.weights.tensor_file import safetensors_chunks
from tests.checkpoints import cases
from tests.distributed.pool import Pool
from tests.distributed.work import lively_model

PATHS = [((2, 0), (4, 3)), ((4, 3), (1, 2)), ((1, 2), (2, 1)), ((4, 1), (2, 0)), ((2, 3), (4, 1))]
"""(ranks, ZeRO stage) that saves and that loads: every stage on both sides, from fewer to more ranks and back."""
NODES = [
    ((), ((0, 2), (1, 3))),
    (((0, 1), (2, 3)), ()),
    ((), ((0, 1),)),
    (((0, 1), (2,), (3,)), ()),
    (((0, 1),), ((0, 1, 2, 3),)),
]
"""For each of them, the nodes of both; without, every rank is a node, as in a checkpoint from before there was a file a node."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target", "nodes"),
    [(*path, nodes) for path, nodes in zip(PATHS, NODES, strict=True)],
    ids=[f"{a}-to-{b}" for a, b in PATHS],
)
def test_parameters_and_moments_are_the_same_on_any_ranks_nodes_and_zero_stage(
    source: tuple[int, int],
    target: tuple[int, int],
    nodes: tuple[Nodes, Nodes],
    ranks: Callable[[int], Pool],
    tmp_path: Path,
) -> None:
    saved = ranks(source[0]).run(
        cases.save_and_load, zero_stage=source[1], directory=tmp_path, load=None, save_as=tmp_path, nodes=nodes[0]
    )
    checkpoint = tmp_path / "step-00000002"
    assert len(list(checkpoint.glob("state-*"))) == (len(nodes[0]) or source[0])
    assert list_checkpoints(checkpoint.parent, verify=True)[1]
    record = read_checkpoint(checkpoint, first=0).record
    again = tmp_path / "again"
    loaded = ranks(target[0]).run(
        cases.save_and_load, zero_stage=target[1], directory=tmp_path, load=checkpoint, save_as=again, nodes=nodes[1]
    )
    before, after = cases.assembled(saved), cases.assembled(loaded)
    assert before.keys() == after.keys() and len(before) == 3 * len(
        list(lively_model(cases.tiny(1, 0).model).parameters())
    )
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert any(before[key].abs().max() > 0 for key in before if key.startswith("exp_avg_sq/"))
    # The published weights are those parameters, also when gathered under ZeRO-3.
    first, second = (load_file(path / "weights.safetensors") for path in (checkpoint, again / "step-00000002"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    model = hyena_ds.load_model(checkpoint / "weights.safetensors")
    assert all(torch.equal(p.flatten(), before[f"parameter/{name}"]) for name, p in model.named_parameters())
    assert (record.ranks, record.zero_stage, record.updates) == (*source, 2)
    assert record.grid == {"data parallel": source[0], "sequence parallel": 1}


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_a_state_without_an_update_is_saved_with_moments_of_zero(
    zero_stage: int, ranks: Callable[[int], Pool], tmp_path: Path
) -> None:
    ranks(2).run(cases.save, directory=tmp_path, zero_stage=zero_stage, steps=[0])
    model = lively_model(cases.tiny(2, zero_stage).model)
    checkpoint = read_checkpoint(tmp_path / "step-00000000")
    saved = SavedState(checkpoint, {name: p.shape for name, p in model.named_parameters()})
    assert all(torch.equal(saved.tensor("parameter", name), p) for name, p in model.named_parameters())
    assert not any(
        saved.tensor(kind, name).any() for kind in ("exp_avg", "exp_avg_sq") for name, _ in model.named_parameters()
    )
    assert checkpoint.record.updates == 0


def test_the_safetensors_library_reads_our_files_and_their_sums_are_right(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b/c@7": torch.randn(4, 6).t(), "scalar": torch.tensor(2.5)}
    tensors["large"] = torch.randn((1 << 21) + 3)  # more than one chunk
    written = write_file(tmp_path / "file.safetensors", safetensors_chunks(tensors, {"width": "5"}))
    path = tmp_path / "file.safetensors"
    assert written == Written(path.stat().st_size, sha256_of(path))
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ({"parameter/w@0": 4}, "parameter/w has 4 elements in all files together, the model's has 6"),
        ({"parameter/w@0": 4, "parameter/w@5": 1}, "of parameter/w, element 4 to 5 is missing"),
        ({"parameter/w@0": 4, "parameter/w@3": 3}, "of parameter/w, element 3 to 4 is there twice"),
        ({"parameter/w@0": 6}, "exp_avg/w has 0 elements in all files together, the model's has 6"),
        ({"parameter/v@0": 6}, "found 'parameter/v@0', which the model does not have"),
        ({"step/w@0": 6}, "found 'step/w@0', which the model does not have"),
    ],
)
def test_pieces_that_do_not_cover_the_model_once_are_refused(
    pieces: dict[str, int], words: str, tmp_path: Path
) -> None:
    tensors = {key: torch.zeros(size) for key, size in pieces.items()}
    name = "state-00000-of-00001.safetensors"
    files = {name: write_file(tmp_path / name, safetensors_chunks(tensors, {}))}
    record = Record("run", RunState(1, 0, 0), 1, 1, {}, 0, [], {})
    with pytest.raises(UserError, match=words):
        SavedState(Checkpoint(tmp_path, Manifest("run", 1, files), record), {"w": (2, 3)})
