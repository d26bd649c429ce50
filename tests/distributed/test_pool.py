"""The pool itself: an error on one rank is told and ends all of them, and the next use starts anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed import cases
from tests.distributed.pool import Pool, RankError


@pytest.fixture(scope="module")
def pair() -> Iterator[Pool]:
    pool = Pool(2)
    yield pool
    pool.close()


def _gone(process_ids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in process_ids)


def test_a_rank_that_raises_hangs_or_dies_ends_the_pool_and_the_next_use_starts_anew(pair: Pool) -> None:
    assert pair.run(cases.group_sum) == [1, 1]
    first = pair.process_ids()
    with pytest.raises(RankError, match="planted on rank 1"):
        pair.run(cases.raise_on, rank=1)
    assert _gone(first) and pair.process_ids() == []
    assert pair.run(cases.group_sum) == [1, 1]
    with pytest.raises(RankError, match=r"no answer from ranks \[0\] of 2 within 1 s"):
        pair.run(cases.hang_on, timeout=1.0, rank=0)
    assert pair.run(cases.group_sum) == [1, 1]
    with pytest.raises(RankError, match="the process died"):
        pair.run(cases.die_on, rank=1)
    last = pair.process_ids()
    assert last == []
