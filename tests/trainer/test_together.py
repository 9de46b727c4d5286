"""Several processes train what one does: equal numbers in float64, and nothing left behind when one of them fails."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from service.errors import ConfigurationError, LimitExceeded, Unavailable
from service.settings import Settings
from tests.trainer import ranks
from tests.trainer.methods.windows import train
from tests.worlds import eventually
from trainer.limits import MIB, Limits, resident
from trainer.methods.base import Adapter
from trainer.processes import Together
from trainer.together import require_shareable

torch.set_num_threads(1)  # with more, sums of the same numbers come out in another order from time to time

GENEROUS = timedelta(minutes=4)


def together(processes: int, timeout: timedelta = GENEROUS) -> Together:
    return Together(processes, torch.device("cpu"), False, timeout)


@cache
def incumbents() -> dict[str, Adapter]:
    """What the first window left, by each method."""
    return {case: train(str(changes["method"]), 1, None).adapter for case, changes in ranks.CASES.items()}


@cache
def alone() -> dict[str, ranks.Outcome]:
    return ranks.outcomes(ranks.ALONE, incumbents())


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return together(2).run(ranks.plain_and_sharded, (incumbents(), tmp_path_factory.mktemp("kept")))


def assert_same(found: ranks.Outcome, expected: ranks.Outcome) -> None:
    """Within 5e-5 of each tensor's and reading's size: processors round differently (2.5e-5 on one with AMX)."""
    (tensors, report), (wanted, wanted_report) = found, expected
    assert tensors.keys() == wanted.keys()
    for name, tensor in tensors.items():
        scale = wanted[name].abs().max().clamp_min(1e-3)
        torch.testing.assert_close(tensor / scale, wanted[name] / scale, rtol=0, atol=5e-5, msg=lambda m, n=name: n + m)
    for name, value in report.items():
        flat, wanted_flat = torch.tensor(value, dtype=torch.float64), torch.tensor(wanted_report[name])
        torch.testing.assert_close(flat, wanted_flat.double(), rtol=1e-5, atol=1e-8, msg=lambda m, n=name: n + m)


# The same result


def test_the_cases_choose_an_epoch_by_validation_and_a_relative_lambda() -> None:
    """Else the comparisons below would leave that out."""
    reports = {case: report for case, (_, report) in alone().items() if case != ranks.PARTS}
    assert all(report["best_epoch"] > 0 for report in reports.values())
    assert any(report["best_epoch"] < ranks.EPOCHS for report in reports.values())
    assert reports["peso"]["penalty_weight"] > 1
    assert all(ratio > 0 for ratio in reports["peso"]["gradient_ratio"])


@pytest.mark.parametrize("case", [*ranks.CASES, ranks.FULL, ranks.PARTS])
def test_two_processes_learn_what_one_does(two: dict[str, dict[str, Any]], case: str) -> None:
    assert_same(two["plain"][case], alone()[case])


@pytest.mark.parametrize("case", [*ranks.CASES, ranks.FULL, ranks.PARTS])
def test_blocks_spread_over_two_processes_learn_the_same(two: dict[str, dict[str, Any]], case: str) -> None:
    assert_same(two["sharded"][case], alone()[case])


def test_three_processes_learn_what_one_does() -> None:
    """Batches of 5 and of 1: some rank is without a sequence, and another time with fewer."""
    found = together(3).run(ranks.only_plain, (incumbents(),))
    for case, outcome in alone().items():
        assert_same(found[case], outcome)


@pytest.mark.parametrize("case", ["peso", ranks.FULL])
def test_interrupted_processes_go_on_to_the_same_bits(two: dict[str, dict[str, Any]], case: str) -> None:
    """With dropout, whose generators are each rank's own; and with weights and moments spread over the ranks."""
    (tensors, report), (wanted, wanted_report), begun = two["interrupted"][case]
    assert begun == [1, 7, 14]  # an interrupted step is done again
    assert report == wanted_report
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in tensors.items())


# What goes wrong


@pytest.fixture
def nobody_left() -> Iterator[None]:
    """No child that trains outlives the call that started it."""
    before = {child.pid for child in psutil.Process().children()}
    yield
    left = [child for child in psutil.Process().children() if child.pid not in before]
    assert not [child.pid for child in left if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.usefixtures("nobody_left")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_fails_the_attempt_with_its_name(victim: int) -> None:
    with pytest.raises(Unavailable, match=f"training process {victim} of 2 was ended by SIGKILL"):
        together(2).run(ranks.is_killed, (victim,))


@pytest.mark.usefixtures("nobody_left")
def test_a_process_that_falls_silent_fails_the_attempt_in_time() -> None:
    with pytest.raises(Unavailable, match="training with 2 processes failed"):
        together(2, timedelta(seconds=5)).run(ranks.is_stopped, (1,))


@pytest.mark.usefixtures("nobody_left")
def test_what_a_process_refuses_is_refused_here() -> None:
    with pytest.raises(ConfigurationError, match="no such rank"):
        together(2).run(ranks.is_refused, ("no such rank",))


@pytest.mark.usefixtures("nobody_left")
def test_a_report_that_says_stop_ends_all_processes(tmp_path: Path) -> None:
    def report(step: str, done: int, total: int) -> None:
        if len(list(tmp_path.glob("rank-*"))) == 2 and step == "fit":
            raise Unavailable("stopped")

    with pytest.raises(Unavailable, match="stopped"):
        together(2).run(ranks.goes_on, (tmp_path,), report)
    pids = [int(path.read_text()) for path in tmp_path.glob("rank-*")]
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """kill -9 of the updater leaves no rank behind that trains for nobody."""
    line = (
        "from pathlib import Path; from tests.trainer import ranks, test_together;"
        f"test_together.together(2).run(ranks.goes_on, (Path({str(tmp_path)!r}),))"
    )
    child = subprocess.Popen([sys.executable, "-c", line])
    eventually(lambda: len(list(tmp_path.glob("rank-*"))) == 2, seconds=200)
    pids = [int(path.read_text()) for path in tmp_path.glob("rank-*")]
    child.kill()
    child.wait()
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids), seconds=20)


# What cannot be


def test_sharding_wants_several_processes() -> None:
    with pytest.raises(ConfigurationError, match="ADAPTIDE_PROCESSES"):
        Together.of(Settings(home=Path("unused"), shard=True))
    assert Together.of(Settings(home=Path("unused"))) is None


def test_a_method_that_compares_whole_batches_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match="ADAPTIDE_PROCESSES=1"):
        require_shareable("output-kl")


@pytest.mark.usefixtures("nobody_left")
def test_training_processes_that_run_out_of_memory_say_so() -> None:
    with pytest.raises(LimitExceeded, match="ran out of memory"):
        together(2).run(ranks.takes_too_much, (2**60,))


@pytest.mark.usefixtures("nobody_left")
def test_training_processes_count_as_the_updaters_and_end_with_what_they_took(tmp_path: Path) -> None:
    alone = resident()
    limits = Limits(None, alone + 64 * MIB)  # two processes with torch take more
    with pytest.raises(LimitExceeded, match="MiB of memory where"):
        together(2).run(ranks.goes_on, (tmp_path,), limits.watching(lambda *_: None))
    assert resident() < alone + 64 * MIB
