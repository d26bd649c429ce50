"""torch's compiler, which takes a second and 100 MB of every rank that imports it."""

from __future__ import annotations

from tests.training.runs import ends_of_ranks


def test_it_is_not_imported_to_train_and_there_for_whoever_compiles() -> None:
    ((code, output),) = ends_of_ranks("tests.training.compilerless", [], 1)
    assert code == 0, output
    assert "trained True False\n" in output
    assert "compiled [2.0, 2.0, 2.0] 1 False\n" in output
