"""Windows under fire: sealers and writers that are killed, leaders that are paused."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.errors import StoreUnavailable
from service.events.partitions import WIDTH
from service.events.tables import events
from service.kit.clock import utc_now
from service.kit.db import Database
from service.settings import Settings
from service.windows import service
from service.windows.repository import Window
from service.windows.states import SealedBecause, WindowState
from tests.chaos import workers
from tests.chaos.scenarios import sized
from tests.chaos.workers import crowd, lines
from tests.windows.streams import all_sequences, write_events
from tests.worlds import eventually

PATIENCE = 120.0
"""Seconds in which anything comes about, on a machine with much else to do."""


def windows_of(database: Database) -> list[Window]:
    """Oldest first."""
    return service.read_page(database, Settings(), limit=1_000_000).windows[::-1]


def assert_each_event_in_one_window(database: Database, found: list[Window]) -> None:
    """No overlap, no gap, and nothing has come into a window after it was sealed."""
    ends = [0] + [window.through_seq for window in found]
    assert [window.after_seq for window in found] == ends[:-1]
    stored = all_sequences(database)
    place, counts = 0, []
    for window in found:
        start = place
        while place < len(stored) and stored[place] <= window.through_seq:
            place += 1
        counts.append(place - start)
    assert counts == [window.events for window in found]
    assert sum(counts) == len(stored)


@pytest.mark.scenario(4)
def test_sealers_and_writers_that_are_killed_lose_and_double_nothing(
    database: Database, tmp_path: Path, figures: dict[str, Any]
) -> None:
    wanted, every = sized(60, 1_000), sized(8, 20)
    if database.dialect == "postgresql":  # over the edge of a partition
        with database.write() as connection:
            connection.execute(sa.text("SELECT setval('events_seq_seq', :seq)"), {"seq": WIDTH - 300})
    draw, told, killed = random.Random(0), [], {"sealers": 0, "writers": 0}
    with crowd(database, tmp_path) as started:
        sealers = [started.start(workers.sealer, 10)[0] for _ in range(3)]
        writers = []
        for _ in range(16):
            process, said = started.start(workers.writer)
            writers.append(process)
            told.append(said)
        for number in range(every, wanted + 1, every):
            eventually(lambda number=number: len(windows_of(database)) >= number, PATIENCE)  # type: ignore[misc]
            victim = draw.randrange(len(sealers))
            sealers[victim].kill()
            sealers[victim] = started.start(workers.sealer, 10)[0]
            victim = draw.randrange(len(writers))
            writers[victim].kill()
            writers[victim], said = started.start(workers.writer)
            told.append(said)
            killed = {name: count + 1 for name, count in killed.items()}
        eventually(lambda: len(windows_of(database)) >= wanted, PATIENCE)
        assert set(started.end()) == {0}
    eventually(lambda: service.horizon(database) > 0, 10)  # the transactions of those killed have ended
    service.seal(database, utc_now, Settings(), SealedBecause.MANUAL)

    found = windows_of(database)
    assert_each_event_in_one_window(database, found)
    said_so = [words for said in told for words in lines(said)]
    acknowledged = [one for kind, *ids in said_so if kind == "acknowledged" for one in ids]
    begun = {one for kind, *ids in said_so if kind == "begun" for one in ids}
    with database.read() as connection:
        stored = list(connection.scalars(sa.select(events.c.event_id)))
    assert len(set(stored)) == len(stored)
    assert set(acknowledged) <= set(stored) <= begun
    in_doubt = len(stored) - len(acknowledged)
    assert in_doubt <= 12 * killed["writers"]  # each was killed in one batch: stored, and not yet said so
    figures |= {"dialect": database.dialect, "windows": len(found), "overlaps": 0, "gaps": 0}
    figures |= {"acknowledged": len(acknowledged), "stored_unsaid": in_doubt, "killed": sum(killed.values())}


@pytest.mark.scenario(5)
def test_a_leader_that_is_paused_is_replaced_and_what_it_still_writes_is_fenced(
    database: Database, tmp_path: Path, figures: dict[str, Any]
) -> None:
    """On PostgreSQL every other pause comes at a random moment, inside a transaction or not."""
    ticks, stops, lease_s = sized(20, 500), sized(2, 50), 2.0
    draw, random_stops = random.Random(1), 0
    failovers: list[float] = []
    pausing, hold = set(range(2, ticks, ticks // stops)), tmp_path / workers.HOLD
    with crowd(database, tmp_path) as started:
        leaders = dict(started.start(workers.leader, lease_s, 0.05) for _ in range(3))
        refused = 0
        for tick in range(ticks):
            at_random = database.dialect == "postgresql" and len(failovers) % 2 == 1
            if tick in pausing and not at_random:
                hold.touch()
            write_events(database, 1)
            window = _sealed(database)
            if tick not in pausing:
                eventually(lambda w=window: _outcome(database, w) is not None, PATIENCE)  # type: ignore[misc]
                continue
            process, said, line = _worker(leaders, window)
            if at_random:
                time.sleep(draw.random() * 0.1)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            began = time.monotonic()
            hold.unlink(missing_ok=True)
            try:
                others = {own: path for own, path in leaders.items() if own is not process}
                eventually(lambda o=others, w=window: bool(_outcome(database, w) or _workers(o, w)), PATIENCE)  # type: ignore[misc]
                if not _workers(others, window):  # it had come to its end, or its last commit was on its way
                    write_events(database, 1)
                    window = _sealed(database)
                _worker(others, window)
                failovers.append(time.monotonic() - began)
                eventually(lambda w=window: _outcome(database, w) is not None, PATIENCE)  # type: ignore[misc]
                before = windows_of(database)
                time.sleep(max(0.0, 2 * lease_s - (time.monotonic() - began)))
            finally:
                os.kill(process.pid, signal.SIGCONT)
            eventually(lambda s=said, n=line: _went_on(lines(s), n), PATIENCE)  # type: ignore[misc]
            refused += ["concluded", *line] not in lines(said)
            random_stops += at_random
            assert windows_of(database) == before
        assert set(started.end()) == {0}
        told = [words for said in leaders.values() for words in lines(said)]

    found = windows_of(database)
    concluded = [int(words[1]) for words in told if words[0] == "concluded"]
    assert {window.state for window in found} == {WindowState.NO_CHANGE}
    assert len(found) >= ticks
    assert len(concluded) == len(set(concluded))  # one effective run for each
    assert {window.window_id for window in found if window.reason == f"by {window.lease_fence}"} == {
        window.window_id for window in found
    }
    assert refused >= len(failovers) - random_stops  # one that was stopped at random may have been done just then
    assert max(failovers) <= lease_s + 5
    figures |= {"dialect": database.dialect, "ticks": ticks, "effective_runs": len(found), "pauses": len(failovers)}
    figures |= {"refused": refused, "at_random": random_stops, "longest_failover_s": round(max(failovers), 2)}


def _sealed(database: Database) -> int:
    """A window of what has come; its number. Tries again while a leader that was paused holds the lock."""
    made: list[Window] = []

    def seal() -> bool:
        try:
            window = service.seal(database, utc_now, Settings(), SealedBecause.MANUAL)
        except StoreUnavailable:
            return False
        assert window is not None
        made.append(window)
        return True

    eventually(seal, PATIENCE)
    return made[0].window_id


def _outcome(database: Database, window_id: int) -> str | None:
    return service.read_window(database, window_id).verdict


def _worker(leaders: dict[Any, Path], window_id: int) -> tuple[Any, Path, list[str]]:
    """The leader that says it works on the window, where it said so, and the window and fence that it named."""
    eventually(lambda: bool(_workers(leaders, window_id)), PATIENCE)
    return _workers(leaders, window_id)[0]


def _workers(leaders: dict[Any, Path], window_id: int) -> list[tuple[Any, Path, list[str]]]:
    told = [(process, said, line) for process, said in leaders.items() for line in lines(said)]
    return [(process, said, line[1:]) for process, said, line in told if line[:2] == ["working", str(window_id)]]


def _went_on(told: list[list[str]], line: list[str]) -> bool:
    """Whether it has said how that piece of work ended."""
    after = told[told.index(["working", *line]) + 1 :]
    return bool(after)
