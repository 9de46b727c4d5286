"""Whether windows become adapters, replicas serve what they should, and anybody may ask."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from service.access.service import AccessService
from service.adapters import repository as adapters
from service.doctor.findings import Finding, ok, problem, warning
from service.kit import leases
from service.kit.clock import Clock
from service.kit.db import Database
from service.replicas.service import read_views
from service.settings import Settings
from service.windows import service as windows
from service.windows.repository import Window
from service.windows.states import WindowState
from service.windows.waiting import Waits, read_waits

LOOKED_AT = 50  # newest windows
RUN = "start one: adaptide trainer run"


def check_windows(database: Database, clock: Clock, settings: Settings) -> Iterator[Finding]:
    """Windows that failed, wait or are stuck, and how fresh the model is."""
    page = windows.read_page(database, settings, limit=LOOKED_AT)
    with database.read() as connection:
        lease = leases.find(connection, windows.UPDATER_LEASE)
        working = lease is not None and lease.expires_at > leases.store_time(connection)
        waits = read_waits(connection, settings)
    now = clock()
    if waits is not None and now > waits.until + _patience(settings):
        waits = None  # an updater would have gone on
    before = [finding for window in page.windows for finding in _of(window, working, waits, settings, now)]
    yield from before
    closed = [window for window in page.windows if window.state is WindowState.SEALED]
    if waits is not None and closed:
        yield ok("windows", f"{len(closed)} closed, which wait as they should {_for(waits)}")
    first = page.open.first_received_at
    waited = clock() - first if first else timedelta(0)
    overdue = settings.window_max_age * 2 + settings.tick_interval * 10
    held = waits is not None and waits.canary is not None  # nothing is closed behind a canary
    if windows.due(database, clock, settings) is not None and waited > overdue and not working and not held:
        said = f"the open window has been due since {_ago(waited - settings.window_max_age)}, and no updater closes it"
        yield warning("windows", said, RUN)
    elif not before:
        yield ok("windows", f"none is stuck or failed; {page.open.events} events wait in the open one")
    yield from _freshness(database, first, waited)


def _of(window: Window, working: bool, waits: Waits | None, settings: Settings, now: datetime) -> Iterator[Finding]:
    name = f"window {window.window_id}"
    if window.state is WindowState.TRAINING and not working:
        yield warning("windows", f"{name}: the updater that worked on it is gone", RUN)
    elif window.state is WindowState.SEALED and not working and waits is None:
        if now - window.sealed_at > _patience(settings):
            yield warning("windows", f"{name} waits for {_ago(now - window.sealed_at)}, and no updater works", RUN)
    elif window.state is WindowState.FAILED:
        reason = window.reason or "no reason was noted"
        if window.attempts >= settings.window_attempts:
            said = f"{name} failed for good after {window.attempts} attempts: {reason}"
            yield problem("windows", said, "put right what it says; its events are in no adapter")
        else:
            again = windows.next_attempt_of(window, settings)
            said = f"{name} failed {window.attempts} of {settings.window_attempts} times: {reason}"
            late = again is None or (not working and now > again + _patience(settings))
            yield warning("windows", said, RUN if late else f"it is tried again at {again:%Y-%m-%d %H:%M} UTC")


def _patience(settings: Settings) -> timedelta:
    """An updater that runs has looked for work by then."""
    return settings.tick_interval * 60


def _for(waits: Waits) -> str:
    until = f"{waits.until:%Y-%m-%d %H:%M} UTC"
    if waits.canary is not None:
        return f"for the canary of adapter {waits.canary}, which is promoted at {until} unless it is ended"
    return f"for window {waits.window_id}, which is tried again at {until}"


def _freshness(database: Database, first: datetime | None, waited: timedelta) -> Iterator[Finding]:
    with database.read() as connection:
        pointer = adapters.read_pointer(connection)
        base = adapters.find_base(connection, pointer.base_id) if pointer.base_id else None
        version = pointer.adapter_version
        adapter = adapters.find_adapter(connection, version) if version else None
    through = (adapter.trained_through if adapter else None) or (base.trained_through if base else None)
    if through is not None:
        waits = f"; the oldest event that it has not seen came {_ago(waited)} ago" if first else ", everything"
        yield ok("freshness", f"the model has learnt through {through:%Y-%m-%d %H:%M} UTC{waits}")


def check_replicas(database: Database, clock: Clock, settings: Settings) -> Iterator[Finding]:
    found = read_views(database, clock, settings)
    for replica in found:
        name = f"{replica.host} (process {replica.process})"
        if replica.late:
            said = f"{name} was last seen {_ago(clock() - replica.seen_at)} ago"
            yield warning("replicas", said, "look at its log; its row goes an hour after it is gone")
        elif replica.degraded:
            yield problem("replicas", f"{name} serves something else: {replica.degraded}", "what is said there")
        else:
            yield ok("replicas", f"{name} serves {replica.adapter_version or replica.base_id or 'popular items'}")
    if not found:
        yield ok("replicas", "none serves now")


def check_keys(database: Database, clock: Clock) -> Iterator[Finding]:
    now = clock()
    good = [key for key in AccessService(database, clock).list() if key.usable(now)]
    soon = [key for key in good if key.expires_at and key.expires_at < now + timedelta(days=7)]
    if not good:
        yield warning(
            "keys", "there is no key, so nobody can ask", "adaptide keys create --name NAME --scope read,write"
        )
    for key in soon:
        yield warning("keys", f"{key.key_id} ({key.name}) expires soon", f"adaptide keys rotate {key.key_id}")
    if good and not soon:
        yield ok("keys", f"{len(good)} can be used")


def _ago(duration: timedelta) -> str:
    seconds = max(0.0, duration.total_seconds())
    for size, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"
