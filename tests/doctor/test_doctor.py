"""Each thing that `adaptide doctor` names, by really causing it; and nothing to say of a good installation."""

import json
import socket
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.access.schemas import Scope
from service.access.service import AccessService
from service.adapters import repository as adapters
from service.adapters.artifacts import ArtifactStore
from service.adapters.moves import MoveRequest
from service.adapters.place import open_artifacts
from service.doctor import places, work
from service.doctor.commands import of_store
from service.doctor.findings import Finding, Level, look
from service.doctor.installation import check_packages, installed
from service.doctor.settings import check_credit, check_settings
from service.errors import ConfigurationError
from service.kit import leases, migrate
from service.kit.clock import Clock, utc_now
from service.kit.db import Database
from service.replicas import repository as replicas
from service.replicas.repository import Replica
from service.settings import Device, EngineName, Environment, Promote, Settings
from service.tables import metadata
from service.trials.promotion import UPDATER, begin_in
from service.windows.service import UPDATER_LEASE
from tests import worlds
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock
from trainer import cli
from trainer import doctor as computing

HOUR = timedelta(hours=1)


def found(findings: Iterator[Finding], level: Level) -> list[str]:
    """check: said."""
    return [f"{one.check}: {one.said}" for one in findings if one.level is level]


def only(findings: Iterator[Finding], level: Level) -> str:
    """The one finding of this level, which says what to do."""
    chosen = [one for one in findings if one.level is level]
    assert len(chosen) == 1, chosen
    assert level is Level.OK or chosen[0].advice
    return f"{chosen[0].check}: {chosen[0].said}"


@pytest.fixture
def shelf(database: Database, settings: Settings) -> Shelf:
    return Shelf(settings.artifacts_dir.parent, database, utc_now)


def changed(settings: Settings, **what: object) -> Settings:
    return settings.model_copy(update=what)


def window(
    database: Database,
    state: str,
    *,
    sealed_at: datetime,
    attempts: int = 1,
    reason: str | None = None,
    after: int = 0,
) -> None:
    with database.write() as connection:
        connection.execute(
            metadata.tables["windows"]
            .insert()
            .values(
                after_seq=after,
                through_seq=after + 5,
                events=5,
                state=state,
                sealed_at=sealed_at,
                sealed_because="count",
                attempts=attempts,
                reason=reason,
                finished_at=sealed_at,
            )
        )


def key(database: Database, **more: timedelta) -> None:
    AccessService(database, utc_now).create("tests", frozenset({Scope.READ}), actor="cli", **more)


def test_a_good_store_has_no_warning(database: Database, settings: Settings, tmp_path: Path) -> None:
    key(database)
    shelf = Shelf(tmp_path, database, utc_now)
    shelf.active_base()
    settings = changed(settings, artifacts_url=str(shelf.artifacts.root))
    findings = list(of_store(database, settings, utc_now))
    assert [one for one in findings if one.level is not Level.OK] == []
    assert {"database", "schema", "clock", "keys", "artifacts", "model", "windows", "replicas"} <= {
        one.check for one in findings
    }


def test_a_database_that_does_not_answer_is_a_problem_and_its_password_a_secret() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        database = Database(f"postgresql://someone:hunter2@127.0.0.1:{port}/none")
        findings = list(of_store(database, Settings(), utc_now))
    assert only(iter(findings), Level.PROBLEM).startswith("database: postgresql")
    assert "hunter2" not in str(findings)


def test_an_old_schema_is_a_problem(tmp_path: Path, settings: Settings) -> None:
    database = Database(f"sqlite:///{tmp_path / 'old.db'}")
    assert only(of_store(database, settings, utc_now), Level.PROBLEM).startswith("schema:")
    migrate.upgrade(database)
    assert found(places.check_database(database), Level.PROBLEM) == []


def test_clocks_that_are_apart_are_named(database: Database, settings: Settings) -> None:
    def ahead(by: timedelta) -> Clock:
        return lambda: utc_now() + by

    near, off, far = (ahead(timedelta(seconds=seconds)) for seconds in (0, 30, 600))
    assert only(places.check_clock(database, near, settings), Level.OK)
    assert "30.0 s ahead" in only(places.check_clock(database, off, settings), Level.WARNING).replace("29.9", "30.0")
    assert "ahead of the database's" in only(places.check_clock(database, far, settings), Level.PROBLEM)
    assert "behind" in only(places.check_clock(database, ahead(-HOUR), settings), Level.PROBLEM)


def test_a_redis_that_is_away_is_a_warning(settings: Settings) -> None:
    assert list(places.check_redis(settings)) == []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        away = Settings(redis_url=f"redis://:hunter2@127.0.0.1:{taken.getsockname()[1]}/0")
        said = str(list(places.check_redis(away)))
        assert only(places.check_redis(away), Level.WARNING).startswith("redis:")
    assert "hunter2" not in said


def test_a_folder_that_cannot_be_written_to_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    said = found(places.check_folders(Settings(home=tmp_path / "file")), Level.PROBLEM)
    assert any(one.startswith("folders: ADAPTIDE_HOME") for one in said)


def test_little_room_is_named(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    huge = 2**62
    assert only(places.check_folders(settings, room=1, little=0), Level.OK).startswith("disk:")
    assert only(places.check_folders(settings, room=huge, little=0), Level.WARNING).startswith("disk:")
    assert only(places.check_folders(settings, room=huge, little=huge), Level.PROBLEM).startswith("disk:")


def test_without_a_base_or_a_key_it_says_how_to_make_one(database: Database, settings: Settings) -> None:
    assert "no base is active" in only(places.check_artifacts(database, open_artifacts(settings)), Level.WARNING)
    assert "there is no key" in only(work.check_keys(database, utc_now), Level.WARNING)
    key(database, expires_in=timedelta(days=3))
    assert "expires soon" in only(work.check_keys(database, utc_now), Level.WARNING)


def test_damaged_weights_are_a_problem(database: Database, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, database, utc_now)
    version = shelf.adapter(shelf.active_base(), 0.1)
    with database.write() as connection:
        connection.execute(metadata.tables["active_adapter"].update().values(adapter_version=version))
    assert found(places.check_artifacts(database, shelf.artifacts), Level.PROBLEM) == []
    shelf.damage(version)
    assert version in only(places.check_artifacts(database, shelf.artifacts), Level.PROBLEM)
    assert found(places.check_artifacts(database, shelf.artifacts, quick=True), Level.PROBLEM) == []


def test_what_is_not_signed_by_our_key_is_a_problem(database: Database, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, database, utc_now)
    shelf.active_base()
    ours = open_artifacts(Settings(home=tmp_path, artifacts_url=str(shelf.artifacts.root), signing_key="k" * 40))
    assert "not signed" in only(places.check_artifacts(database, ours), Level.PROBLEM)


def test_a_place_that_cannot_be_written_to_is_a_problem(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    said = found(places.check_artifacts(database, ArtifactStore(tmp_path / "file")), Level.PROBLEM)
    assert said[0].startswith("artifacts:")


def test_windows_that_failed_wait_or_lost_their_updater_are_named(
    database: Database, settings: Settings, clock: SetClock
) -> None:
    table = metadata.tables["windows"]

    def said(level: Level) -> str:
        return only(work.check_windows(database, clock, settings), level)

    assert said(Level.OK).startswith("windows: none")
    window(database, "failed", sealed_at=clock(), attempts=3, reason="out of memory")
    assert "failed for good after 3 attempts: out of memory" in said(Level.PROBLEM)
    for values, expected in (
        ({"state": "failed", "attempts": 1}, "failed 1 of 3 times"),
        ({"state": "training"}, "the updater that worked on it is gone"),
        ({"state": "sealed"}, "waits for 5 hours"),
    ):
        with database.write() as connection:
            connection.execute(table.update().values(**values))
        clock.now += HOUR * (5 if values["state"] == "sealed" else 0)
        assert expected in said(Level.WARNING)
    with database.write() as connection:
        leases.acquire(connection, UPDATER_LEASE, "tests", HOUR)
    assert found(work.check_windows(database, clock, settings), Level.WARNING) == []


def test_windows_behind_a_canary_wait_as_they_should_until_it_ought_to_have_been_promoted(
    database: Database, settings: Settings, clock: SetClock, tmp_path: Path
) -> None:
    shelf = Shelf(tmp_path, database, clock)
    candidate = shelf.adapter(shelf.active_base(), 0.1)
    with database.write() as connection:
        pointer = adapters.read_pointer(connection, lock=True)
        begin_in(connection, clock, pointer, candidate, 0.1, MoveRequest(UPDATER))
    window(database, "sealed", sealed_at=clock())
    clock.advance(hours=5)
    by_canary = changed(settings, canary_duration=6 * HOUR)  # ADAPTIDE_PROMOTE may say otherwise by now
    assert found(work.check_windows(database, clock, by_canary), Level.WARNING) == []
    said = found(work.check_windows(database, clock, by_canary), Level.OK)
    assert f"windows: 1 closed, which wait as they should for the canary of adapter {candidate}" in said[0]
    clock.advance(hours=2)
    assert "window 1 waits for 7 hours" in only(work.check_windows(database, clock, by_canary), Level.WARNING)


def test_windows_behind_one_that_is_tried_again_wait_as_they_should_until_then(
    database: Database, settings: Settings, clock: SetClock
) -> None:
    seldom = changed(settings, window_retry_pause=6 * HOUR)
    window(database, "failed", sealed_at=clock(), reason="out of memory")
    window(database, "sealed", sealed_at=clock(), after=5)
    clock.advance(hours=5)
    assert "window 1 failed 1 of 3 times" in only(work.check_windows(database, clock, seldom), Level.WARNING)
    [said] = found(work.check_windows(database, clock, seldom), Level.OK)
    assert said.startswith("windows: 1 closed, which wait as they should for window 1, which is tried again at")
    clock.advance(hours=2)
    late = [one for one in work.check_windows(database, clock, seldom) if one.level is Level.WARNING]
    assert [one.advice for one in late] == [work.RUN] * 2


def test_a_window_that_nobody_closes_is_named(database: Database, settings: Settings, clock: SetClock) -> None:
    few = changed(settings, window_min_events=1)
    worlds.send(database, clock, [worlds.event("e", "u", "i", worlds.START)])
    assert found(work.check_windows(database, clock, few), Level.WARNING) == []
    clock.advance(hours=3)
    assert "has been due since 2 hours" in only(work.check_windows(database, clock, few), Level.WARNING)


def test_a_late_or_degraded_replica_is_named(database: Database, settings: Settings, clock: SetClock) -> None:
    def row(**changes: object) -> Replica:
        what = {
            "replica_id": "r-1",
            "host": "one",
            "process": 7,
            "started_at": clock(),
            "seen_at": clock(),
            "revision": 1,
            "base_id": None,
            "adapter_version": None,
            "wanted_base_id": None,
            "wanted_version": None,
            "degraded": None,
        }
        return Replica(**{**what, **changes})  # type: ignore[arg-type]  # each has the type of its column

    assert "none serves now" in only(work.check_replicas(database, clock, settings), Level.OK)
    with database.write() as connection:
        replicas.write(connection, row(degraded="its weights are damaged"))
    assert "its weights are damaged" in only(work.check_replicas(database, clock, settings), Level.PROBLEM)
    clock.advance(minutes=5)
    assert "was last seen 5 minutes ago" in only(work.check_replicas(database, clock, settings), Level.WARNING)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"recommendation_cache": timedelta(seconds=5)}, "RECOMMENDATION_CACHE"),
        ({"window_min_events": 50_000}, "WINDOW_MIN_EVENTS"),
        ({"poll_interval": timedelta(seconds=5)}, "POLL_INTERVAL"),
        ({"queue_patience": timedelta(seconds=2)}, "QUEUE_PATIENCE"),
        ({"environment": Environment.PRODUCTION}, "production on SQLite"),
        ({"artifacts_url": "s3://bucket/place"}, "not signed"),
        ({"threads": 4096}, "THREADS is 4096"),
        ({"shard": True}, "SHARD"),
        ({"event_retention": timedelta(days=1), "recommendation_retention": timedelta(days=9)}, "kept longer"),
        ({"window_max_age": timedelta(seconds=0.5)}, "WINDOW_MAX_AGE"),
        ({"promote": Promote.CANARY, "rollback_automatic": True}, "promoted before ROLLBACK_AUTOMATIC can end it"),
    ],
)
def test_settings_at_odds_are_named(what: dict[str, object], said: str) -> None:
    assert found(check_settings(Settings()), Level.WARNING) == []
    assert said in only(check_settings(changed(Settings(), **what)), Level.WARNING)


def test_recommendations_that_leave_before_they_are_counted_are_named() -> None:
    days = {"quality_horizon": timedelta(days=1), "quality_bucket": timedelta(hours=1)}
    lateness = timedelta(hours=1)
    for more in ({"recommendation_retention": timedelta(hours=26)}, {"event_retention": timedelta(hours=26)}):
        tight = changed(Settings(), **days, quality_lateness=lateness, **more)
        assert "counted up to 1 day, 2:00:00" in only(check_credit(tight), Level.WARNING)
    enough = changed(Settings(), **days, quality_lateness=lateness, recommendation_retention=timedelta(hours=27))
    assert not list(check_credit(enough))
    assert not list(check_credit(changed(tight, quality_horizon=None)))
    assert not list(check_credit(Settings()))


def test_a_missing_or_old_package_is_named(settings: Settings) -> None:
    assert found(check_packages(settings), Level.PROBLEM) == []

    def without(name: str, old: str | None = None) -> Iterator[Finding]:
        return check_packages(settings, lambda asked: old if asked == name else installed(asked))

    assert "alembic is missing" in only(without("alembic"), Level.PROBLEM)
    assert "alembic 0.1 is outside" in only(without("alembic", "0.1"), Level.WARNING)
    assert "runs from a folder" in only(without("adaptide"), Level.WARNING)


def test_an_extra_that_the_settings_need_is_named(settings: Settings) -> None:
    redis = Settings(redis_url="redis://127.0.0.1/0")
    said = only(check_packages(redis, lambda name: None if name == "redis" else installed(name)), Level.PROBLEM)
    assert said == "extras: Redis needs redis"
    vllm = changed(settings, engine=EngineName.VLLM)
    said = only(check_packages(vllm, lambda name: None if name == "vllm" else installed(name)), Level.PROBLEM)
    assert said == "extras: ADAPTIDE_ENGINE=vllm needs vllm"


def test_what_computes_is_looked_at(settings: Settings) -> None:
    assert found(computing.check_processor(settings, "AVX2"), Level.WARNING) == []
    assert "DEFAULT" in only(computing.check_processor(settings, "DEFAULT"), Level.WARNING)
    assert only(computing.check_memory(computing.GIB // 2), Level.WARNING).startswith("memory: 0.5 GiB")
    assert only(computing.check_memory(4 * computing.GIB), Level.OK)
    wrong = changed(settings, method="hope")
    checks = computing.checks(wrong)
    assert "ADAPTIDE_METHOD=hope is unknown" in only(look("method", checks["method"]), Level.PROBLEM)


def test_processes_beyond_the_cores_and_a_gpu_that_is_not_there_are_named(settings: Settings) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    many = changed(settings, processes=4096)
    assert "PROCESSES is 4096" in only(computing.check_processor(many, "AVX2"), Level.WARNING)
    wanted = changed(settings, device=Device.CUDA)
    assert "finds no GPU" in only(computing.check_device(wanted), Level.PROBLEM)


def test_a_check_that_breaks_is_a_problem_and_no_crash() -> None:
    def broken() -> Iterator[Finding]:
        raise RuntimeError("boom")

    def wrong() -> Iterator[Finding]:
        raise ConfigurationError("set it right")

    assert "RuntimeError while looking" in only(look("it", broken), Level.PROBLEM)
    assert only(look("it", wrong), Level.PROBLEM) == "it: set it right"


@pytest.fixture
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("ADAPTIDE_HOME", str(settings.home))
    monkeypatch.setenv("ADAPTIDE_DATABASE_URL", settings.database_url.get_secret_value())
    return monkeypatch


def test_the_command_ends_with_1_on_a_problem_and_prints_no_secret(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ADAPTIDE_SIGNING_KEY", "s3cret" * 8)
    good = CliRunner().invoke(cli.app, ["doctor", "--json"])
    document = json.loads(good.stdout)
    assert (good.exit_code, document["healthy"]) == (0, True), good.stdout
    assert {"settings", "packages", "processor", "memory", "method", "disk", "database"} <= {
        one["check"] for one in document["findings"]
    }
    environment.setenv("ADAPTIDE_METHOD", "hope")
    bad = CliRunner().invoke(cli.app, ["doctor", "--quick"])
    assert bad.exit_code == 1
    assert "problem method: ADAPTIDE_METHOD=hope is unknown" in bad.stdout
    assert "s3cret" not in good.stdout + bad.stdout


def test_a_database_that_does_not_exist_is_named_and_not_made(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "away" / "none.db"
    environment.setenv("ADAPTIDE_DATABASE_URL", f"sqlite:///{path}")
    said = CliRunner().invoke(cli.app, ["doctor", "--quick"])
    assert said.exit_code == 1
    assert f"problem database: {path} does not exist\n    adaptide db upgrade makes it" in said.stdout
    assert not path.parent.exists()


def test_wrong_settings_are_a_problem_too(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ADAPTIDE_BEEMS", "3")
    said = CliRunner().invoke(cli.app, ["doctor"])
    assert (said.exit_code, "unknown setting ADAPTIDE_BEEMS" in said.stdout) == (1, True)
