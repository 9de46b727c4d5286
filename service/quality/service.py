"""What live recommendations have come to, by what ranked them."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy.engine import Connection

from service.kit.db import Database
from service.quality import repository
from service.quality.figures import Counts, Sums
from service.quality.repository import Bucket, Model
from service.quality.sequential import Decision, Rules, Sides, judge
from service.recommend.schemas import Strategy
from service.settings import Settings
from service.trials.states import Arm

POPULAR = Model(repository.POPULAR, Strategy.POPULAR.value)
IMMATURE_AT_MOST = 100_000
"""Immature recommendations are counted up to here: a page must not wait for a day of a busy shop."""


STRAGGLERS = 0.01
"""A replica that learns of a promotion late still serves the previous version for a moment."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One model's recommendations that were counted, and how many wait for their horizon to end."""

    by: Model
    counts: Counts
    immature: int
    first: datetime | None
    last: datetime | None


@dataclass(frozen=True, slots=True)
class Quality:
    """horizon: None when nothing is counted. immature_capped: there are more immature ones than were looked at.

    buckets: what the figures were added up from, in order of time.
    """

    horizon: timedelta | None
    counted_through: datetime | None
    immature_capped: bool
    models: list[Figures]
    buckets: list[Bucket] = field(default_factory=list)


def read_quality(
    database: Database,
    settings: Settings,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Quality:
    """Of recommendations made in since <= time < until; buckets that begin in it count whole. By model, newest first.

    Only what was judged with the horizon in force: figures of two horizons do not add up.
    """
    horizon = settings.quality_horizon
    with database.read() as connection:
        found = [] if horizon is None else repository.buckets(connection, horizon, since=since, until=until)
        return quality_of(connection, settings, found, since=since, until=until)


def quality_of(
    connection: Connection,
    settings: Settings,
    found: list[Bucket],
    *,
    since: datetime | None,
    until: datetime | None,
) -> Quality:
    """See read_quality; of the buckets that begin in since <= time < until, which the caller has read."""
    through = repository.counted_through(connection)
    if settings.quality_horizon is None:
        return Quality(None, through, False, [])
    uncounted = max(filter(None, (since, through)), default=None)
    immature = repository.count_immature(connection, uncounted, until, IMMATURE_AT_MOST)
    capped = sum(immature.values()) >= IMMATURE_AT_MOST
    by_model: dict[Model, list[Bucket]] = {by: [] for by in immature}
    for bucket in found:
        by_model.setdefault(bucket.by, []).append(bucket)
    figures = [
        Figures(
            by,
            Counts.total([bucket.counts for bucket in own]),
            immature.get(by, 0),
            own[0].start if own else None,
            own[-1].end if own else None,
        )
        for by, own in by_model.items()
    ]
    oldest = datetime.min.replace(tzinfo=UTC)
    newest = sorted(figures, key=lambda one: (one.immature > 0, one.last or oldest, one.by.model), reverse=True)
    return Quality(settings.quality_horizon, through, capped, newest, found)


def rules_of(settings: Settings) -> Rules:
    """The rules of automatic rollback."""
    return Rules(
        settings.rollback_alpha,
        settings.rollback_margin,
        settings.rollback_min_recommendations,
        settings.rollback_uncontrolled,
    )


def compare_arms(
    database: Database, settings: Settings, *, challenger: str, incumbent: str, since: datetime
) -> Decision:
    """Whether `challenger`'s live hit rate in a canary fell below `incumbent`'s in control. See sequential.judge.

    challenger, incumbent: adapter versions, or a base's id for the base alone. since: when the canary began; buckets
    count that begin later. May be asked after every bucket: the chance of one false alarm is ADAPTIDE_ROLLBACK_ALPHA
    over all of them.
    """
    found: list[Bucket] = []
    if settings.quality_horizon is not None:
        with database.read() as connection:
            models, horizon = {challenger, incumbent}, settings.quality_horizon
            found = repository.buckets(connection, horizon, since=since, models=models, sketches=False)
    return judge(arms_of(found, challenger, incumbent), rules_of(settings))


def arms_of(buckets: Iterable[Bucket], challenger: str, incumbent: str) -> Sides:
    """What the challenger answered in the canary's arm and the incumbent in control's, in buckets with both. Pure.

    Nothing else of either: users without an id, and replicas without the candidate, are in no arm.
    """
    wanted = {(challenger, Arm.CANARY.value), (incumbent, Arm.CONTROL.value)}
    armed = _by_start(bucket for bucket in buckets if (bucket.by.model, bucket.by.arm) in wanted)
    both = [own for own in map(_by_model, armed.values()) if len(own) == len(wanted)]
    return Sides(_sum(both, challenger), _sum(both, incumbent), concurrent=True)


def sides_of(buckets: Iterable[Bucket], challenger: str, incumbent: str, since: datetime) -> Sides:
    """What to compare of these buckets (in order of time). Pure.

    A bucket in which the pointer moved holds both as well, but not of the same time: only buckets that begin at
    `since` or later can be concurrent, and only when the incumbent has more than stragglers in them. Where a canary
    divided the users, only those that it divided are compared.
    """
    by_start = _by_start(buckets)
    after = [_by_model(own) for start, own in by_start.items() if start >= since]
    before = [_by_model(own) for start, own in by_start.items() if start < since]
    shared = [_by_model(_assigned(own)) for start, own in by_start.items() if start >= since]
    both = [own for own in shared if challenger in own and incumbent in own]
    if sum(own[incumbent].shown for own in both) > STRAGGLERS * sum(own[challenger].shown for own in both):
        return Sides(_sum(both, challenger), _sum(both, incumbent), concurrent=True)
    new, old = [own for own in after if challenger in own], [own for own in before if incumbent in own]
    return Sides(
        _sum(new, challenger),
        _sum(old, incumbent),
        popular_challenger=_sum(new, repository.POPULAR),
        popular_incumbent=_sum(old, repository.POPULAR),
    )


def _by_start(buckets: Iterable[Bucket]) -> dict[datetime, list[Bucket]]:
    found: defaultdict[datetime, list[Bucket]] = defaultdict(list)
    for bucket in buckets:
        found[bucket.start].append(bucket)
    return found


def _assigned(buckets: list[Bucket]) -> list[Bucket]:
    """Of one time: what a canary's arms answered, or all where there was none."""
    return [bucket for bucket in buckets if bucket.by.arm != repository.MAIN] or buckets


def _by_model(buckets: Iterable[Bucket]) -> dict[str, Sums]:
    found: dict[str, Sums] = {}
    for bucket in buckets:
        found[bucket.by.model] = found.get(bucket.by.model, Sums()) + bucket.counts.sums
    return found


def _sum(buckets: Iterable[dict[str, Sums]], model: str) -> Sums:
    return sum((own[model] for own in buckets if model in own), Sums())
