"""Each acknowledged event is in exactly one window, however writers and sealers interleave."""

import random
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.adapters.repository import NewBase
from service.adapters.service import read_registry
from service.audit.tables import audit_log
from service.errors import Conflict, StoreUnavailable
from service.events.partitions import WIDTH
from service.kit.db import Database
from service.settings import Settings
from service.windows import service
from service.windows.repository import Window
from service.windows.states import SealedBecause, WindowState
from tests import worlds
from tests.adapters.tiny import EARLIER, Shelf
from tests.conftest import SetClock
from tests.windows.streams import NOON, all_sequences, insert_events, write_events


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path, database_url=database_url, window_max_events=10, window_min_events=3, window_max_age="PT1H"
    )


def windows_of(database: Database, settings: Settings) -> list[Window]:
    """Oldest first."""
    return service.read_page(database, settings, limit=100_000).windows[::-1]


def test_an_empty_window_is_not_sealed(database: Database, clock: SetClock, settings: Settings) -> None:
    assert service.seal(database, clock, settings, SealedBecause.MANUAL) is None
    write_events(database, 2)
    service.seal(database, clock, settings, SealedBecause.MANUAL)
    assert service.seal(database, clock, settings, SealedBecause.MANUAL) is None


def test_windows_follow_each_other_without_gap(database: Database, clock: SetClock, settings: Settings) -> None:
    first, second = write_events(database, 3), None
    one = service.seal(database, clock, settings, SealedBecause.MANUAL)
    second = write_events(database, 2)
    two = service.seal(database, clock, settings, SealedBecause.AGE)
    assert one is not None
    assert two is not None
    assert (one.after_seq, one.through_seq, one.events, one.state) == (0, first[-1], 3, WindowState.SEALED)
    assert (two.after_seq, two.through_seq, two.events) == (first[-1], second[-1], 2)


def test_a_seal_by_count_takes_exactly_that_many(database: Database, clock: SetClock, settings: Settings) -> None:
    sequences = write_events(database, 25)
    sealed = [service.seal(database, clock, settings, SealedBecause.COUNT) for _ in range(3)]
    assert [window.events for window in sealed if window] == [10, 10, 5]
    assert [window.through_seq for window in sealed if window] == [sequences[9], sequences[19], sequences[24]]


def test_a_seal_can_end_at_a_given_event(database: Database, clock: SetClock, settings: Settings) -> None:
    sequences = write_events(database, 5)
    window = service.seal(database, clock, settings, SealedBecause.MANUAL, through_seq=sequences[2])
    assert window is not None
    assert (window.through_seq, window.events) == (sequences[2], 3)
    assert service.seal(database, clock, settings, SealedBecause.MANUAL, through_seq=sequences[1]) is None


def test_a_window_is_due_by_age_then_by_count(database: Database, clock: SetClock, settings: Settings) -> None:
    assert service.due(database, clock, settings) is None
    write_events(database, 3, NOON)
    assert service.due(database, clock, settings) is None
    clock.advance(hours=1)
    assert service.due(database, clock, settings) is SealedBecause.AGE
    write_events(database, 7, NOON)
    assert service.due(database, clock, settings) is SealedBecause.COUNT


def test_closing_by_hand_is_audited_and_refused_when_there_is_nothing(
    database: Database, clock: SetClock, settings: Settings
) -> None:
    write_events(database, 1)
    window = service.close(database, clock, settings, actor="key:admin")
    with database.read() as connection:
        row = connection.execute(sa.select(audit_log)).one()
    assert (row.action, row.subject, row.actor) == ("window.close", str(window.window_id), "key:admin")
    with pytest.raises(Conflict, match="nothing to close"):
        service.close(database, clock, settings, actor="key:admin")


def test_a_base_takes_its_events_and_the_windows_within_them(
    shelf: Shelf, database: Database, clock: SetClock, settings: Settings
) -> None:
    write_events(database, 4)
    waiting = service.seal(database, clock, settings, SealedBecause.MANUAL)
    trained = write_events(database, 6)
    later = write_events(database, 2)
    made = shelf.publish_base()
    base = NewBase(made.id, made.digest, EARLIER)
    done = service.install_base(database, clock, base, through_seq=trained[-1], actor="cli")
    assert waiting is not None
    skipped, of_base = windows_of(database, settings)
    assert (skipped.window_id, skipped.state, skipped.attempts) == (waiting.window_id, WindowState.SKIPPED, 0)
    assert (of_base.state, of_base.events, of_base.base_id) == (WindowState.BASE, 6, made.id)
    assert service.read_page(database, settings).open.events == len(later)
    assert (done.revision, read_registry(database).pointer.base_id) == (1, made.id)


def test_a_base_comes_with_its_first_adapter_and_what_runs_first_is_part_of_it(
    shelf: Shelf, database: Database, clock: SetClock
) -> None:
    made = shelf.publish_base()
    adapter = shelf.candidate(made.id, 0.1)
    base = NewBase(made.id, made.digest)

    def fail(_: object) -> None:
        raise Conflict("the catalogue could not be encoded")

    with pytest.raises(Conflict):
        service.install_base(database, clock, base, through_seq=0, actor="cli", adapter=adapter, first=fail)
    assert read_registry(database).pointer.base_id is None
    for _ in range(2):  # a build that is repeated gives the same again
        done = service.install_base(database, clock, base, through_seq=0, actor="cli", adapter=adapter)
        assert done.to_version == adapter.adapter_version


@pytest.mark.timeout(120)
def test_no_event_is_lost_or_doubled_between_writers_and_sealers(
    database: Database, clock: SetClock, settings: Settings
) -> None:
    """4 writers commit 300 events each, out of order; 2 sealers cut windows all the while."""
    acknowledged: list[int] = []
    lock, done = threading.Lock(), threading.Event()

    def write(seed: int) -> None:
        draw, left = random.Random(seed), 300
        while left:
            count = min(left, draw.randint(1, 12))
            with database.write() as connection:
                sequences = insert_events(connection, count)
                time.sleep(draw.random() * 0.004)  # numbers are taken, the commit comes later
            with lock:
                acknowledged.extend(sequences)
            left -= count
            time.sleep(draw.random() * 0.004)  # SQLite's lock is not fair: leave the sealers a turn

    def keep_sealing(because: SealedBecause) -> None:
        while not done.is_set():
            try:
                service.seal(database, clock, settings, because)
            except StoreUnavailable:
                continue  # a writer was slow: try again, as the updater does
            time.sleep(0.001)

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    sealers = [threading.Thread(target=keep_sealing, args=(b,)) for b in (SealedBecause.COUNT, SealedBecause.MANUAL)]
    for thread in [*sealers, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in sealers:
        thread.join()
    service.seal(database, clock, settings, SealedBecause.MANUAL)

    found = windows_of(database, settings)
    assert len(found) >= 3
    ends = [0] + [window.through_seq for window in found]
    assert [window.after_seq for window in found] == ends[:-1]
    stored = all_sequences(database)
    in_windows = [[s for s in stored if w.after_seq < s <= w.through_seq] for w in found]
    assert [len(part) for part in in_windows] == [window.events for window in found]
    assert sorted(acknowledged) == [s for part in in_windows for s in part]


WRITER = """
import random, sys, time
from service.kit.db import Database
from service.events import repository
from tests.windows.streams import NOON

url, name, seed, left = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
draw, database = random.Random(seed), Database(url)
while left:
    count = min(left, draw.randint(1, 12))
    rows = [
        {"event_id": f"{name}-{left - n}", "body_hash": "0" * 64, "user_id": name, "item_id": "i", "event_type": "view",
         "occurred_at": NOON, "received_at": NOON, "value": None, "recommendation_id": None, "position": None,
         "properties": None}
        for n in range(count)
    ]
    with database.write() as connection:
        repository.insert_new(connection, rows)
        time.sleep(draw.random() * 0.02)  # numbers are taken, the commit comes later
    print(*(row["event_id"] for row in rows), flush=True)  # acknowledged
    left -= count
"""


@pytest.mark.timeout(180)
def test_processes_that_write_out_of_order_over_a_partitions_edge_lose_and_double_nothing(
    database: Database, clock: SetClock, settings: Settings
) -> None:
    """RELIABILITY 4, small: 4 writer processes, one of them killed, and 2 sealers; windows and acknowledged agree."""
    if database.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    with database.write() as connection:
        connection.execute(sa.text("SELECT setval('events_seq_seq', :seq)"), {"seq": WIDTH - 300})
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    done = threading.Event()

    def keep_sealing(because: SealedBecause) -> None:
        while not done.is_set():
            try:
                service.seal(database, clock, settings, because)
            except StoreUnavailable:
                continue

    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WRITER, url, f"w{seed}", str(seed), "100000" if seed == 3 else "250"],
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for seed in range(4)
        ]
        reasons = (SealedBecause.COUNT, SealedBecause.MANUAL)
        sealers = [threading.Thread(target=keep_sealing, args=(because,)) for because in reasons]
        for thread in sealers:
            thread.start()
        said = [writer.communicate()[0] for writer in writers[:3]]
        writers[3].kill()
        said.append(writers[3].communicate()[0])
        done.set()
        for thread in sealers:
            thread.join()
    assert [writer.returncode for writer in writers[:3]] == [0, 0, 0]
    worlds.eventually(lambda: service.horizon(database) > 0, 10)  # the killed writer's transaction has ended
    service.seal(database, clock, settings, SealedBecause.MANUAL)

    # What the killed one had written in half a line was not acknowledged; what it had not said may be stored.
    acknowledged = [one for text in said for line in text.splitlines(True) if line[-1:] == "\n" for one in line.split()]
    found = windows_of(database, settings)
    ends = [0] + [window.through_seq for window in found]
    assert [window.after_seq for window in found] == ends[:-1]
    with database.read() as connection:
        stored = {one: seq for one, seq in connection.execute(sa.text("SELECT event_id, seq FROM events"))}
    in_windows = [sum(w.after_seq < seq <= w.through_seq for seq in stored.values()) for w in found]
    assert in_windows == [window.events for window in found]
    assert sum(in_windows) == len(stored)
    assert len(set(acknowledged)) == len(acknowledged) >= 750
    assert set(acknowledged) <= stored.keys()
    assert {name for name in stored if not name.startswith("w3")} == {
        name for name in acknowledged if not name.startswith("w3")
    }
    assert min(stored.values()) <= WIDTH < max(stored.values())


@pytest.mark.timeout(60)
def test_a_sealer_waits_for_a_writer_with_a_lower_number(
    database: Database, clock: SetClock, settings: Settings
) -> None:
    if database.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    with database.write() as slow:
        low = insert_events(slow, 1)
        high = write_events(database, 1)
        assert low < high
        with pytest.raises(StoreUnavailable):
            service.seal(database, clock, settings, SealedBecause.MANUAL)
    window = service.seal(database, clock, settings, SealedBecause.MANUAL)
    assert window is not None
    assert (window.through_seq, window.events) == (high[-1], 2)
