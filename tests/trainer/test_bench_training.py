"""The training benchmark compares like with like."""

import torch

from trainer.bench_training import bench_training

torch.set_num_threads(1)


def test_both_ways_have_the_same_gradients_and_are_timed() -> None:
    row = bench_training(32, 2, 2, seed=0, repeats=2)

    assert row.max_gradient_difference < 1e-4
    assert row.ours_examples_per_s > 0
    assert row.peer_examples_per_s > 0
    assert row.fewest <= row.speedup <= row.most
