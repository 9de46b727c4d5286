"""The service's benchmarks drive the real server and hold every reply against the engine's own answer."""

import pytest

from trainer.bench_replicas import bench_replicas
from trainer.bench_service import bench_service
from trainer.bench_shop import ShopSize
from trainer.bench_swap import bench_swap
from trainer.bench_trial import bench_trial

SMALL = ShopSize(hidden=32, layers=2, items=300, users=10)


@pytest.mark.e2e
def test_closed_and_open_loops_get_right_replies_only() -> None:
    rows = bench_service(SMALL, [1, 4], [0.3], threads=1, seconds=1.0, repeats=1)

    assert [(row.loop, row.rate is None) for row in rows] == [("closed", True), ("closed", True), ("open", False)]
    assert [row.concurrency for row in rows[:2]] == [1, 4]
    for row in rows:
        assert row.requests > 0
        assert (row.errors, row.wrong, row.threads) == (0, 0, 1)
        assert 0 < row.p50_ms <= row.p99_ms
        assert min(row.requests_per_s, row.engine_requests_per_s, row.server_cpu_ms, row.engine_cpu_ms) > 0


@pytest.mark.e2e
def test_swaps_under_load_neither_fail_nor_mix_replies() -> None:
    (row,) = bench_swap(SMALL, swaps=4, load=0.2, threads=1, seconds_between=0.2, repeats=1)

    assert (row.swaps, row.failed, row.mixed) == (4, 0, 0)
    assert row.requests == sum(row.versions.values()) > 0
    assert min(row.p99_ms, row.quiet_p99_ms, row.resident_before_mib, row.resident_after_mib) > 0


@pytest.mark.e2e
def test_replicas_over_one_store_answer_alike() -> None:
    rows = bench_replicas(None, SMALL, [1, 2], clients=2, threads=1, seconds=1.0, repeats=1)

    assert [(row.replicas, row.store) for row in rows] == [(1, "sqlite"), (2, "sqlite")]
    assert rows[0].ratio == 1
    for row in rows:
        assert (row.errors, row.wrong) == (0, 0)
        assert row.requests > 0
        assert min(row.requests_per_s, row.ratio, row.p50_ms, row.cores) > 0
        assert row.p50_ms <= row.p99_ms


@pytest.mark.e2e
def test_a_trial_under_load_fails_nobody_and_every_reply_is_its_versions_own() -> None:
    rows = bench_trial(SMALL, load=0.1, threads=1, seconds=1.0, share=0.5, repeats=1)

    assert [row.trial for row in rows] == ["off", "canary", "shadow"]
    assert [(row.failed, row.wrong) for row in rows] == [(0, 0)] * 3
    off, canary, shadow = rows
    assert (off.candidate, off.shadowed, shadow.candidate) == (0, 0, 0)
    assert 0 < canary.candidate < canary.requests
    assert shadow.shadowed > 0
