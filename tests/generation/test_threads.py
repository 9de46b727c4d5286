"""More CPU threads are taken only while each step saves enough."""

import pytest
import torch

from service.generation.threads import choose_threads, fewest_that_pay


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 1.0, 2: 1.3}, 1),
        ({1: 1.0, 2: 0.9}, 1),
        ({1: 1.0, 2: 0.6, 4: 0.4, 8: 0.38}, 4),
        ({1: 1.0, 2: 0.95, 4: 0.3}, 1),
        ({1: 1.0}, 1),
    ],
)
def test_threads_that_save_little_are_left_to_others(seconds: dict[int, float], chosen: int) -> None:
    assert fewest_that_pay(seconds) == chosen


def test_the_choice_holds_for_this_process() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        counts: list[int] = []
        chosen = choose_threads(lambda: counts.append(torch.get_num_threads()))
        assert set(counts) == {1, 2, 3}
        assert chosen == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
