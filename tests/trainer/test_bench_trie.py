"""The trie benchmark measures the trie that the service searches."""

from trainer.bench_trie import bench_trie


def test_a_row_says_what_a_catalogue_costs() -> None:
    row = bench_trie(5_000, seed=0, repeats=1)

    assert row.items == 5_000
    assert 40 < row.bytes_per_item < 80
    assert min(row.build_s, row.add_ms, row.hide_ms, row.mask_ms, row.exclude_ms) > 0
