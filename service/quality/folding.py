"""Recommendations whose time is up are counted, a bucket of time after the other, each in one transaction.

A bucket is counted once all that may be credited to its recommendations has had time to come: ADAPTIDE_QUALITY_HORIZON
after its end, and ADAPTIDE_QUALITY_LATENESS more. How far that has come is stored with the counts, so a kill anywhere
loses at most the reading of one bucket, and nothing is counted twice. Each recommendation is read once as its own and
once for those of the same user before it whose items were taken meanwhile.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy.engine import Connection

from service.events.repository import stored_popularity
from service.kit import leases
from service.kit.clock import Clock
from service.kit.crash_points import CrashPoint, crash_point
from service.kit.db import Database
from service.kit.leases import Lease
from service.quality import repository
from service.quality.attribution import Shown, Taken, credits
from service.quality.figures import Surprises, Tally
from service.quality.repository import Bucket, Model
from service.settings import Settings

QUALITY_LEASE = "quality"
"""Name of the lease under which recommendations are counted and automatic rollbacks are made."""
PAGE = 1_000
AHEAD = 500
"""So many later recommendations of a user are looked at; events after them that name none are credited to nothing."""
AT_ONCE_S = 30.0
"""Buckets are counted for so long before others get a turn: the first count of a store may find years of them."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

log = structlog.get_logger(__name__)


def fold(
    database: Database,
    clock: Clock,
    settings: Settings,
    lease: Lease,
    monotonic: Callable[[], float] = time.monotonic,
) -> int:
    """Count the buckets whose time is up; none is begun after AT_ONCE_S. How many were counted.

    Raises StoreUnavailable, LeaseLost. It may be interrupted anywhere.
    """
    done, enough = 0, monotonic() + AT_ONCE_S
    while (not done or monotonic() < enough) and (span := due(database, clock(), settings)) is not None:
        counted = _count(database, settings, *span)
        crash_point(CrashPoint.COUNTING)
        with database.write() as connection:
            leases.check(connection, lease)
            repository.record(connection, counted, _horizon(settings), span[1], clock())
        shown = sum(bucket.counts.sums.shown for bucket in counted)
        log.info("quality_counted", start=span[0].isoformat(), recommendations=shown)
        done += 1
    return done


def forget(database: Database, clock: Clock, settings: Settings) -> int:
    """Delete buckets that are older than ADAPTIDE_QUALITY_RETENTION; how many."""
    if settings.quality_retention is None:
        return 0
    with database.write() as connection:
        return repository.delete_before(connection, clock() - settings.quality_retention)


def due(database: Database, now: datetime, settings: Settings) -> tuple[datetime, datetime] | None:
    """The next bucket (start, end) if its time is up; time without recommendations is passed over."""
    if settings.quality_horizon is None:
        return None
    with database.read() as connection:
        through = repository.counted_through(connection)
        first = repository.first_made(connection, through)
    if first is None:
        return None
    start = _EPOCH + (first - _EPOCH) // settings.quality_bucket * settings.quality_bucket
    end = start + settings.quality_bucket
    start = start if through is None else max(start, through)  # buckets had another length
    return (start, end) if end + settings.quality_horizon + settings.quality_lateness <= now else None


def _horizon(settings: Settings) -> timedelta:
    assert settings.quality_horizon is not None  # noqa: S101  # asked by `due`
    return settings.quality_horizon


def _count(database: Database, settings: Settings, start: datetime, end: datetime) -> list[Bucket]:
    tallies: defaultdict[Model, Tally] = defaultdict(Tally)
    last: dict[str, tuple[str, ...]] = {}  # what each user of the bucket was shown last
    with database.read(patient=True) as connection:
        surprises = Surprises(stored_popularity(connection))
        catalogue = repository.count_catalogue(connection)
    after = ""
    while True:
        with database.read(patient=True) as connection:
            page = repository.made(connection, start, end, after, PAGE)
            if not page:
                break
            taken = credited(connection, page, _horizon(settings), settings.ignored_event_types)
            users = {one.user_id for one in page if one.user_id is not None}
            last |= repository.shown_before(connection, users - last.keys(), min(one.at for one in page))
        for one in page:
            previous = None if one.user_id is None else last.get(one.user_id)
            own = taken.get(one.recommendation_id, set())
            tallies[one.by].add(one.user_id, one.item_ids, own, previous, surprises)
            if one.user_id is not None:
                last[one.user_id] = one.item_ids
        after = page[-1].recommendation_id
    return [Bucket(start, end, by, tally.counts(catalogue)) for by, tally in tallies.items()]


def credited(
    connection: Connection, page: Sequence[Shown], horizon: timedelta, ignored: Collection[str]
) -> dict[str, set[str]]:
    """recommendation_id -> items that were taken from it, of some recommendations: see attribution.credits.

    ignored: types of events that do not count.
    """
    known: dict[str, Shown] = {one.recommendation_id: one for one in page}
    held: defaultdict[str, set[str]] = defaultdict(set)
    for one in page:
        if one.user_id is not None:
            held[one.user_id].update(one.item_ids)
    first = min(one.at for one in page)
    named = repository.taken_by_name(connection, known, ignored)
    timed: list[Taken] = []
    if held:
        wanted = set().union(*held.values())
        found = repository.taken_by_time(
            connection, held.keys(), wanted, first, max(one.at for one in page) + horizon, ignored
        )
        timed = [event for event in found if event.item_id in held[event.user_id]]
    timed = [event for event in timed if event.recommendation_id not in known]  # those are among `named`
    others = {event.recommendation_id for event in timed if event.recommendation_id is not None}
    known |= {one.recommendation_id: one for one in repository.find_shown(connection, others)}
    until: dict[str, datetime] = {}
    for event in (*named, *timed):
        if event.user_id in held:
            until[event.user_id] = max(event.at, until.get(event.user_id, event.at))
    later = repository.shown_later(connection, until, first, AHEAD)
    known |= {one.recommendation_id: one for own in later.values() for one in own}
    cut = {user_id: own[-1].at for user_id, own in later.items() if len(own) == AHEAD}
    return credits(known.values(), [*named, *timed], horizon, cut)
