"""A disk that is full: on artifacts, checkpoints, temporary files, and the SQLite database.

As root it is a small file system of its own; else the processes may write no file beyond a size, which the system says
in other words and at other places. Both are run at full size.
"""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import sqlalchemy as sa

from service.events.tables import events
from service.kit.db import Database
from tests import worlds
from tests.built import BuiltWorld
from tests.chaos.scenarios import FULL
from tests.chaos.stand import Stand
from tests.cluster.cluster import Process
from tests.cluster.nursery import Nursery
from tests.conftest import PostgresStore

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800), pytest.mark.scenario(23)]

SIZE = 48 * 2**20
ROOM = 4096
"""Bytes left on a full disk: enough to begin a file, too few to end it."""


class Disk:
    """A folder. full: nothing beyond `ROOM` bytes can be written; roomy: it can again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._ballast = path / "ballast"
        self.mounted = mount(path)

    def fill(self, *processes: Process) -> None:
        if not self.mounted:
            for process in processes:
                psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))
            return
        with self._ballast.open("ab", buffering=0) as file:
            while (left := shutil.disk_usage(self.path).free) > ROOM:
                file.write(bytes(min(left - ROOM, 2**20)))

    def empty(self, *processes: Process) -> None:
        if self.mounted:
            self._ballast.unlink()
            return
        for process in processes:
            psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", self.path], check=True)


def mount(path: Path) -> bool:
    """A small file system at `path`; False where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("mount") is None or os.environ.get("ADAPTIDE_TEST_DISK") == "limit":
        return False
    line = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", path]
    return subprocess.run(line, capture_output=True).returncode == 0


@pytest.fixture(params=["mounted", "limit"] if FULL else ["either"])
def disk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    if request.param == "limit":
        monkeypatch.setenv("ADAPTIDE_TEST_DISK", "limit")
    disk = Disk(tmp_path / "disk")
    if request.param == "mounted" and not disk.mounted:
        pytest.skip("file systems cannot be mounted here")
    yield disk
    disk.close()


class Place:
    """A stand part of which lies on the disk."""

    def __init__(self, stand: Stand, disk: Disk) -> None:
        self.stand, self.disk = stand, disk
        self.service = stand.serve()
        self.updater = stand.updater(CHECKPOINT_INTERVAL="0.01")
        stand.until("the updater runs", lambda: self.updater.said("updater_started") or None)


@pytest.fixture
def place(
    request: pytest.FixtureRequest, nursery: Nursery, built_world: BuiltWorld, disk: Disk, tmp_path: Path
) -> Iterator[Place]:
    on_disk: str = request.param
    folder = tmp_path / "stand"
    folder.mkdir()
    postgres: PostgresStore | None = None
    if on_disk == "database":
        shutil.copy(request.getfixturevalue("_sqlite_template"), disk.path / "adaptide.db")
        database = Database(f"sqlite:///{disk.path / 'adaptide.db'}")
    else:  # which a limit on the files of our own processes leaves alone
        postgres = request.getfixturevalue("_postgres")
        database = Database(postgres.url)
    settings = {"artifacts": {"ARTIFACTS_URL": str(disk.path / "artifacts")}, "home": {"HOME": str(disk.path)}}
    stand = Stand(nursery, built_world, database, folder, settings.get(on_disk, {}))
    if on_disk == "temporary":
        stand.temporary = disk.path / "tmp"
        stand.temporary.mkdir()
    try:
        yield Place(stand, disk)
    finally:
        stand.close()
        database.close()
        if postgres is not None:
            postgres.reset()


def on(*parts: str) -> pytest.MarkDecorator:
    """Which part of a stand lies on the disk."""
    marks = [] if "database" in parts else [pytest.mark.postgres]
    return pytest.mark.parametrize("place", [pytest.param(part, marks=marks) for part in parts], indirect=True)


@on("artifacts", "temporary")
def test_a_window_that_cannot_be_published_fails_with_the_reason_and_is_published_once_there_is_room(
    place: Place, figures: dict[str, Any]
) -> None:
    stand, disk = place.stand, place.disk
    before, active = stand.visible(), stand.active()
    disk.fill(place.updater)
    with stand.traffic() as seen:
        window_id = stand.newcomers()
        failed = stand.failed(window_id, attempts=2)
        assert "written" in (failed.reason or "") or "disk" in (failed.reason or "").lower(), failed
        assert stand.visible() == before
        assert stand.active() == active
        assert stand.counts(window_id) == (0, 0)
        assert place.updater.alive()
        disk.empty(place.updater)
        window = stand.concluded(window_id)
    assert (window.verdict, stand.counts(window_id)) == ("promoted", (1, 1))
    assert stand.active() == window.candidate_version
    assert stand.left_behind() == []
    assert seen.failures == []
    figures |= {
        "disk": _kind(disk),
        "reason": str(failed.reason).rpartition(": ")[2],
        "attempts": window.attempts,
        "serving_failures": 0,
    }
    figures |= {"replies": len(seen.replies)}


@on("home")
def test_a_training_whose_checkpoints_find_no_room_goes_on_without_them(place: Place, figures: dict[str, Any]) -> None:
    stand, disk = place.stand, place.disk
    if not disk.mounted:
        pytest.skip("a limit on the size of files would stop the publication, too")
    disk.fill(place.updater)
    with stand.traffic() as seen:
        window = stand.concluded(stand.newcomers())
    assert (window.verdict, window.attempts) == ("promoted", 1)
    assert place.updater.said("checkpoint_not_written")
    assert seen.failures == []
    disk.empty(place.updater)
    again = stand.concluded(stand.newcomers())
    assert (again.verdict, again.attempts) == ("promoted", 1)
    figures |= {"disk": _kind(disk), "attempts": window.attempts, "serving_failures": 0, "replies": len(seen.replies)}


@on("database")
def test_a_full_database_answers_recommendations_refuses_events_and_goes_on_once_there_is_room(
    place: Place, figures: dict[str, Any]
) -> None:
    stand, disk = place.stand, place.disk
    stand.concluded(stand.newcomers())  # one window in peace
    batches = Batches()
    with stand.client() as client, stand.traffic() as seen:
        disk.fill(place.service, place.updater)
        refused = stand.until("events are refused", lambda: batches.refused(client))
        assert (refused.status_code, int(refused.headers["Retry-After"]) >= 1) == (503, True), refused.text
        answered = len(seen.replies)
        stand.until("more is answered", lambda: True if len(seen.replies) > answered + 20 else None)
        assert place.updater.alive()
        disk.empty(place.service, place.updater)
        stand.until("events are taken", lambda: batches.refused(client) is None or None)
        client.post("/v1/admin/windows/close")  # 409 when the updater has done it already
        latest = client.get("/v1/admin/windows").raise_for_status().json()["windows"][0]["window_id"]
        stand.concluded(latest)  # of impressions, which nobody learns from
        stand.window_id = latest
        window_id = stand.newcomers(client)
        window = stand.concluded(window_id)
    assert window.verdict == "promoted"
    assert stand.counts(window_id) == (1, 1)
    assert seen.failures == []
    with stand.database.read() as connection:
        stored = set(connection.scalars(sa.select(events.c.event_id)))
    assert batches.acknowledged <= stored
    figures |= {"disk": _kind(disk), "events": refused.status_code, "acknowledged": len(batches.acknowledged)}
    figures |= {"lost": 0, "serving_failures": 0, "replies": len(seen.replies)}


class Batches:
    """Batches of impressions, as large as they come."""

    def __init__(self) -> None:
        self.acknowledged: set[str] = set()
        self._turn = 0

    def refused(self, client: httpx.Client) -> httpx.Response | None:
        """What another batch got; None when it was taken."""
        self._turn += 1
        names = [f"full-{self._turn}-{number}" for number in range(200)]
        more = {"properties": {"note": "x" * 500}}
        batch = [worlds.event(name, "u59", "i00", worlds.START, "impression", **more) for name in names]
        reply = client.post("/v1/events", json={"events": batch})
        if reply.status_code != 202:
            return reply
        self.acknowledged.update(names)
        return None


def _kind(disk: Disk) -> str:
    return "a small file system" if disk.mounted else "a limit on the size of files"
