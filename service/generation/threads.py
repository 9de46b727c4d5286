"""How many CPU threads a search gets: as many as make a lone one faster, for they are taken from everything else."""

import time
from collections.abc import Callable

import structlog
import torch

SAVES = 0.85  # of the time with half as many threads, at most: a core that saves less is worth more to other requests
TURNS = 4

log = structlog.get_logger(__name__)


def choose_threads(search: Callable[[], object]) -> int:
    """Time `search` with 1, 2, 4, .. threads up to torch's own number, in turns, and keep the best for this process.

    It is for the first model, before other threads compute: a thread that has computed keeps the number it began with.
    """
    most = torch.get_num_threads()
    counts = [1 << power for power in range(most.bit_length()) if 1 << power < most] + [most]
    best = dict.fromkeys(counts, float("inf"))
    for turn in range(TURNS):
        for count in counts:
            torch.set_num_threads(count)
            began = time.perf_counter()
            search()
            if turn:  # the first turn makes the threads
                best[count] = min(best[count], time.perf_counter() - began)
    chosen = fewest_that_pay(best)
    torch.set_num_threads(chosen)
    log.info("threads_chosen", threads=chosen, ms={count: round(1000 * s, 1) for count, s in best.items()})
    return chosen


def fewest_that_pay(seconds: dict[int, float]) -> int:
    """seconds: by number of threads, rising. More threads are taken as long as each step saves enough (SAVES)."""
    counts = list(seconds)
    chosen = counts[0]
    for count in counts[1:]:
        if seconds[count] > SAVES * seconds[chosen]:
            break
        chosen = count
    return chosen
