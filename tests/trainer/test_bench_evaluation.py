"""The benchmark's three ways of finding a list agree; how long they take is not tested."""

import pytest

from trainer.bench_evaluation import PEER_USERS, SINGLE_USERS, bench_evaluation


@pytest.mark.parametrize("seed", [0, 1])
def test_generate_and_our_engine_alone_and_batched_return_the_same_lists(seed: int) -> None:
    peer, single, batched = bench_evaluation(hidden=32, layers=2, users=70, items=400, seed=seed, repeats=1)

    assert [row.users for row in (peer, single, batched)] == [PEER_USERS, SINGLE_USERS, 70]
    assert (peer.same, peer.compared) == (PEER_USERS, PEER_USERS)
    assert (single.same, single.compared) == (70, 70)
    assert all(0 < row.fewest <= row.milliseconds <= row.most for row in (peer, single, batched))
