"""The benchmark of choices runs and measures each of them."""

from trainer.bench_choices import bench_choices


def test_every_way_of_asking_is_measured_beside_a_plain_one() -> None:
    rows = bench_choices(32, 1, 300, seed=0, repeats=1)
    assert [row.way for row in rows] == [
        "plain",
        "filter: one item",
        "filter: 1 % of the items",
        "filter: half of the items",
        "filter: one item, by exclusions",
        "filter: one item, relaxed",
        "diversity 0.5",
        "exploration 0.2",
        "explain, 20 past items",
        "more like this",
    ]
    assert all(0 < row.fewest <= row.milliseconds <= row.most for row in rows)
