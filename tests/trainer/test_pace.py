"""Who is reported as no person: whoever is quicker than one, or regular as a timer."""

import random
from datetime import datetime, timedelta

import pytest

from tests import worlds
from trainer.pace import LEAST, is_suspect


def at(*pauses: float) -> list[datetime]:
    """Moments that far apart, in seconds."""
    times = [worlds.START]
    for pause in pauses:
        times.append(times[-1] + timedelta(seconds=pause))
    return times


def test_more_than_one_a_second_for_so_long_is_no_person() -> None:
    assert is_suspect(at(*[0.1, 1.5] * 40))
    assert is_suspect([worlds.START] * LEAST)


def test_the_same_pause_again_and_again_is_no_person() -> None:
    assert is_suspect(at(*[60.0] * LEAST))
    assert is_suspect(at(*[60.0, 61.0] * LEAST))


def test_a_few_interactions_tell_nothing() -> None:
    assert not is_suspect([])
    assert not is_suspect(at(*[60.0] * (LEAST - 2)))


@pytest.mark.parametrize("seed", range(5))
def test_somebody_who_looks_around_and_comes_back_in_the_evening_is_a_person(seed: int) -> None:
    draw = random.Random(seed)
    visit = [draw.expovariate(1 / 8) for _ in range(60)]
    assert not is_suspect(at(*visit, 6 * 3600.0, *visit[::-1]))
    rated = [0.0, 0.0, 0.0, 0.0, 25.0] * 40  # five at a time, as a page of ratings is sent
    assert not is_suspect(at(*rated))
