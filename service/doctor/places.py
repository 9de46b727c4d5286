"""Whether database, Redis, folders and artifacts are there, are the right ones, and have room."""

import shutil
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from sqlalchemy.engine import make_url

from service.adapters import repository as adapters
from service.adapters.artifacts import ArtifactStore
from service.doctor.findings import Finding, ok, problem, warning
from service.errors import AdaptideError, ArtifactError, ArtifactUntrusted, ConfigurationError, StoreUnavailable
from service.kit import leases, migrate
from service.kit.clock import Clock
from service.kit.db import Database
from service.settings import Settings
from service.shared import make_link

GIB = 2**30
ROOM = 2 * GIB
"""A base of a small model and a few checkpoints."""
LITTLE_ROOM = GIB // 4
SKEW = timedelta(seconds=2)


def check_store_file(url: str) -> Iterator[Finding]:
    """Nothing is found of a file that is there, or of a server. Looking for it does not make it."""
    path = make_url(url).database if url.startswith("sqlite") else None
    if path and not path.startswith("file:") and not Path(path).expanduser().exists():
        yield problem("database", f"{path} does not exist", "adaptide db upgrade makes it")


def check_database(database: Database) -> Iterator[Finding]:
    """Reachable, new enough, at this version's schema."""
    where = database.url.render_as_string(hide_password=True)
    try:
        database.require_supported()
    except StoreUnavailable as error:
        yield problem("database", f"{where}: {error.detail}", "start it, or set ADAPTIDE_DATABASE_URL to where it is")
        return
    except ConfigurationError as error:
        yield problem("database", error.detail, "a server of a version that is supported (docs/postgresql.md)")
        return
    yield ok("database", f"{where} answers")
    try:
        migrate.require_head(database)
    except ConfigurationError as error:
        yield problem("schema", error.detail, "adaptide db upgrade")
        return
    yield ok("schema", f"at {migrate.head(database)}, this version's")


def check_clock(database: Database, clock: Clock, settings: Settings) -> Iterator[Finding]:
    """This machine's clock against the store's."""
    with database.read() as connection:
        apart = clock() - leases.store_time(connection)
    said = f"this machine's clock is {abs(apart.total_seconds()):.1f} s {'ahead of' if apart > SKEW else 'behind'}"
    advice = "let both keep time by NTP: events of the future are refused, and leases and windows count by it"
    if abs(apart) > settings.clock_tolerance:
        yield problem("clock", f"{said} the database's", advice)
    elif abs(apart) > SKEW:
        yield warning("clock", f"{said} the database's", advice)
    else:
        yield ok("clock", "as the database's, to within 2 s")


def check_redis(settings: Settings) -> Iterator[Finding]:
    link = make_link(settings)
    if link is None:
        return
    try:
        if link.connect():
            yield ok("redis", "answers")
        else:
            advice = "start it, or empty ADAPTIDE_REDIS_URL; until then replicas poll, which is slower (docs/redis.md)"
            yield warning("redis", link.state().detail or "does not answer", advice)
    finally:
        link.stop()


def check_folders(settings: Settings, room: int = ROOM, little: int = LITTLE_ROOM) -> Iterator[Finding]:
    """Whether folders can be written to, and the room that is left on their disks, each disk once."""
    folders = {"ADAPTIDE_HOME": settings.home_dir, "artifacts": settings.artifacts_dir}
    if settings.store_url.startswith("sqlite:///"):
        folders["database"] = Path(settings.store_url.removeprefix("sqlite:///")).expanduser().parent
    disks: set[int] = set()
    for name, folder in folders.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            advice = "make it a folder that this user may write to, or name another"
            yield problem("folders", f"{name}: {there} cannot be written to ({error.strerror})", advice)
            continue
        disk = there.stat().st_dev
        if disk in disks:
            continue
        disks.add(disk)
        free = shutil.disk_usage(there).free
        said = f"{name}: {free / GIB:.1f} GiB free at {there}"
        if free < little:
            yield problem("disk", said, "make room: adaptide artifacts gc, ADAPTIDE_EVENT_RETENTION, or a larger disk")
        elif free < room:
            yield warning("disk", said, "make room soon: adaptide artifacts gc --dry-run says what could go")
        else:
            yield ok("disk", said)


def check_artifacts(database: Database, artifacts: ArtifactStore, *, quick: bool = False) -> Iterator[Finding]:
    """Whether the place can be written to, and what serves is what was published. quick: its files are not read."""
    try:
        artifacts.check(write=True)
        yield ok(
            "artifacts", f"{artifacts.remote.objects.url if artifacts.remote else artifacts.root} can be written to"
        )
    except ArtifactError as error:
        advice = "set ADAPTIDE_ARTIFACTS_URL to a place that this user may write to; what is loaded serves on"
        yield problem("artifacts", error.detail, advice)
    with database.read() as connection:
        pointer = adapters.read_pointer(connection)
        base = None if pointer.base_id is None else adapters.find_base(connection, pointer.base_id)
        version = pointer.adapter_version
        adapter = None if version is None else adapters.find_adapter(connection, version)
    if pointer.base_id is None:
        yield warning("model", "no base is active: everybody gets popular items", "adaptide base build")
        return
    if base is None or (version is not None and adapter is None):
        yield problem("model", "the active base or adapter is not registered", "restore the database from a backup")
        return
    if quick:
        yield ok("model", f"base {base.base_id}, adapter {version or 'none'} (files not read)")
        return
    try:
        opened = artifacts.open_base(base.base_id, base.digest)
        if adapter is not None:
            artifacts.open_adapter(adapter.adapter_version, adapter.digest, opened)
    except ArtifactUntrusted as error:
        yield problem("model", error.detail, "adaptide artifacts sign, with the key that serve has (docs/artifacts.md)")
    except AdaptideError as error:
        advice = "restore its folder from a backup, or serve another: adaptide adapters rollback"
        yield problem("model", error.detail, advice)
    else:
        signed = "signed and " if artifacts.keys.set else ""
        yield ok("model", f"base {base.base_id}, adapter {version or 'none'}: {signed}every byte as published")
