"""The updater dies at every named place, or lives for long; the service beside it answers all the while."""

import signal
import statistics
from typing import Any

import psutil
import pytest

from service.kit.crash_points import PAUSE_VARIABLE, VARIABLE, CrashPoint
from tests.chaos.scenarios import sized
from tests.chaos.stand import PATIENCE, Stand
from tests.leases import run_out

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]


POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.postgres)


@pytest.mark.scenario(6)
@pytest.mark.parametrize("database_url", sized([POSTGRESQL], ["sqlite", POSTGRESQL]), indirect=True)
def test_an_updater_that_is_killed_anywhere_leaves_one_outcome_for_each_window(
    stand: Stand, figures: dict[str, Any]
) -> None:
    """Each that is started after a kill comes one point further, until the window has its outcome."""
    kills, windows = 0, []
    stand.serve()
    with stand.traffic() as seen:
        for _ in range(sized(1, 5)):
            windows.append(stand.newcomers())
            for point in CrashPoint:
                if point is CrashPoint.COUNTING:  # in no update: tests/quality/test_loop.py
                    continue
                if point is CrashPoint.COLLECTING:  # comes after the outcome
                    windows.append(stand.newcomers())
                active, concluded = stand.active(), point in (CrashPoint.CONCLUDED, CrashPoint.COLLECTING)
                doomed = stand.updater(
                    **{VARIABLE.removeprefix("ADAPTIDE_"): point.value},
                    CHECKPOINT_INTERVAL="0.001",
                    ARTIFACTS_COLLECT="true",
                )
                assert doomed.wait(PATIENCE) == -signal.SIGKILL, (point, stand.logs())
                kills += 1
                window = stand.window(windows[-1])
                assert window is not None
                assert (window.verdict == "promoted") == concluded, point
                assert stand.active() == (window.candidate_version if concluded else active), point
                assert stand.counts(window.window_id) == ((1, 1) if concluded else (0, 0)), point
                stand.visible()
                run_out(stand.database)  # tests/chaos/test_windows.py waits for it
        before = [stand.window(window_id) for window_id in windows]
        updater = stand.updater()
        windows.append(stand.newcomers())
        stand.concluded(windows[-1])
        stand.stop(updater)
    assert [stand.window(window_id) for window_id in windows[:-1]] == before
    assert [stand.counts(window_id) for window_id in windows] == [(1, 1)] * len(windows)
    published = [int(name[1:7]) for name in stand.visible()]
    assert {window_id: published.count(window_id) for window_id in windows} == dict.fromkeys(windows, 1)
    assert seen.failures == []
    assert len(seen.replies) > kills
    figures |= {"dialect": stand.database.dialect, "points": len(CrashPoint), "kills": kills, "windows": len(windows)}
    figures |= {"outcomes_a_window": 1, "partial_folders_visible": 0, "replies": len(seen.replies), "serving_5xx": 0}


@pytest.mark.parametrize("database_url", ["sqlite", POSTGRESQL], indirect=True)
def test_an_updater_that_was_paused_once_it_had_judged_publishes_nothing_beside_the_one_that_took_over(
    stand: Stand,
) -> None:
    paused = stand.updater(**{PAUSE_VARIABLE.removeprefix("ADAPTIDE_"): CrashPoint.JUDGED.value})
    number = stand.newcomers()
    stand.until("it is paused", lambda: psutil.Process(paused.pid).status() == psutil.STATUS_STOPPED or None)
    run_out(stand.database)
    another = stand.updater(LEARNING_RATE_UPDATE="0.011")  # its adapter would be another one
    concluded = stand.concluded(number)
    assert (concluded.verdict, concluded.attempts) == ("promoted", 2)
    stand.stop(another)

    paused.signal(signal.SIGCONT)
    stand.until("the paused one leaves the window", lambda: paused.said('"event":"window_left"') or None)

    stand.stop(paused)
    assert stand.window(number) == concluded
    assert stand.counts(number) == (1, 1)
    assert [name for name in stand.visible() if int(name[1:7]) == number] == [concluded.candidate_version]
    assert stand.left_behind() == []


@pytest.mark.scenario(25)
@pytest.mark.parametrize("database_url", sized(["sqlite"], ["sqlite", POSTGRESQL]), indirect=True)
def test_twenty_updates_leave_memory_descriptors_threads_and_temporary_files_as_they_were(
    stand: Stand, figures: dict[str, Any]
) -> None:
    updates, warm = sized(5, 20), sized(2, 5)
    service, updater = stand.serve(), stand.updater()
    processes = {"service": psutil.Process(service.pid), "updater": psutil.Process(updater.pid)}
    seen: dict[str, list[tuple[float, int, int]]] = {name: [] for name in processes}
    with stand.traffic() as traffic:
        for _ in range(updates):
            window = stand.concluded(stand.newcomers())
            assert window.verdict == "promoted"
            stand.until("it serves", lambda w=window: _serves(stand, w.candidate_version))
            for name, process in processes.items():
                memory = process.memory_info().rss / 2**20
                seen[name].append((memory, process.num_fds(), process.num_threads()))
    assert traffic.failures == []
    stand.stop(updater)
    assert [path.name for path in stand.temporary.iterdir()] == []
    assert stand.left_behind() == []
    figures |= {"dialect": stand.database.dialect, "updates": updates}
    for name, samples in seen.items():
        after = samples[warm - 1 :]
        growth = statistics.linear_regression(range(len(after)), [memory for memory, _, _ in after]).slope
        descriptors, threads = ({row[column] for row in after} for column in (1, 2))
        figures |= {
            f"{name}_mib": f"{after[0][0]:.0f} to {after[-1][0]:.0f}",
            f"{name}_mib_an_update": round(growth, 2),
            f"{name}_descriptors": f"{min(descriptors)} to {max(descriptors)}",
            f"{name}_threads": f"{min(threads)} to {max(threads)}",
        }
        assert growth < sized(8.0, 2.0), samples
        assert max(descriptors) - min(descriptors) <= 6, samples  # connections come and go
        assert max(threads) - min(threads) <= 4, samples


def _serves(stand: Stand, version: str | None) -> bool | None:
    with stand.client() as client:
        reply = client.get("/v1/users/u59/recommendations").raise_for_status().json()
    return True if (reply["model"] or {}).get("adapter_version") == version else None
