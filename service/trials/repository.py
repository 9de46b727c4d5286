"""SQL of trials and of what a candidate ranked in the shadow."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.events.tables import events
from service.kit.db import one_of
from service.kit.ids import least_uuid7, moment_of
from service.recommend.tables import recommendations
from service.trials.states import Deed, EndReason, Kind, Trial
from service.trials.tables import shadow_rankings, trial_moves

_TAKEN = (events.c.user_id, events.c.item_id, events.c.occurred_at, events.c.recommendation_id)


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One start, change or end of a trial, as it was recorded."""

    audit_id: str
    revision: int
    deed: Deed
    adapter_version: str
    base_id: str
    kind: Kind
    share: float
    salt: str
    started_at: datetime
    ends_at: datetime | None
    because: EndReason | None
    actor: str
    reason: str | None
    idempotency_key: str | None
    request_hash: str | None
    created_at: datetime

    @property
    def trial(self) -> Trial | None:
        """What is under way from this row on."""
        if self.deed is Deed.END:
            return None
        who = (self.adapter_version, self.base_id, self.kind, self.share, self.salt)
        return Trial(*who, self.started_at, self.ends_at)


@dataclass(frozen=True, slots=True)
class Answered:
    """One request of a trial: item ids shown, in rank order; those of the candidate in the shadow; the arm."""

    recommendation_id: str
    user_id: str | None
    created_at: datetime
    shown: tuple[str, ...]
    shadow: tuple[str, ...] = ()
    arm: str | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """What an event says of what a user took."""

    user_id: str
    item_id: str
    occurred_at: datetime
    recommendation_id: str | None


def latest(connection: Connection) -> TrialRow | None:
    """The row that says what is under way; None when there never was a trial."""
    query = sa.select(trial_moves).order_by(trial_moves.c.revision.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _row(row)


def latest_of(connection: Connection, versions: Collection[str]) -> dict[str, TrialRow]:
    """The latest row of each of these candidates that was ever on trial."""
    if not versions:
        return {}
    own = trial_moves.c
    newest = sa.select(sa.func.max(own.revision)).where(own.adapter_version.in_(versions)).group_by(own.adapter_version)
    rows = connection.execute(sa.select(trial_moves).where(own.revision.in_(newest))).mappings()
    return {row["adapter_version"]: _row(row) for row in rows}


def history(connection: Connection, limit: int) -> list[TrialRow]:
    """Newest first."""
    query = sa.select(trial_moves).order_by(trial_moves.c.revision.desc()).limit(limit)
    return [_row(row) for row in connection.execute(query).mappings()]


def find(connection: Connection, idempotency_key: str) -> TrialRow | None:
    query = sa.select(trial_moves).where(trial_moves.c.idempotency_key == idempotency_key)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _row(row)


@dataclass(frozen=True, slots=True)
class Past:
    """A candidate's latest trial: from when to when (None: it is under way), and what it has been."""

    adapter_version: str
    since: datetime
    until: datetime | None
    kinds: frozenset[Kind]


def last_trial(connection: Connection, version: str | None) -> Past | None:
    """The latest trial of this candidate (None: of any); None when there was none."""
    query = sa.select(trial_moves).order_by(trial_moves.c.revision.desc()).limit(1)
    if version is not None:
        query = query.where(trial_moves.c.adapter_version == version)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        return None
    latest = _row(row)
    same = sa.select(trial_moves.c.kind).where(
        trial_moves.c.adapter_version == latest.adapter_version, trial_moves.c.salt == latest.salt
    )
    kinds = frozenset(map(Kind, connection.scalars(same)))
    return Past(latest.adapter_version, latest.started_at, None if latest.trial else latest.created_at, kinds)


def insert(connection: Connection, row: TrialRow) -> None:
    """Only under the pointer's lock: whoever decides on a trial holds it (adapters.repository.read_pointer)."""
    values = asdict(row) | {"deed": row.deed.value, "kind": row.kind.value}
    values["because"] = None if row.because is None else row.because.value
    connection.execute(trial_moves.insert().values(**values))


def insert_shadow(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> int:
    """Those whose recommendation is stored; how many. One that was erased meanwhile is not."""
    ids = [row["recommendation_id"] for row in rows]
    query = sa.select(recommendations.c.recommendation_id)
    known = set(connection.scalars(query.where(one_of(connection, recommendations.c.recommendation_id, ids))))
    stored = [row for row in rows if row["recommendation_id"] in known]
    if stored:
        connection.execute(shadow_rankings.insert(), stored)
    return len(stored)


def shadow_of(connection: Connection, recommendation_ids: Collection[str]) -> list[Mapping[str, Any]]:
    """Every shadow ranking of these recommendations."""
    if not recommendation_ids:
        return []
    chosen = one_of(connection, shadow_rankings.c.recommendation_id, recommendation_ids)
    return [dict(row) for row in connection.execute(sa.select(shadow_rankings).where(chosen)).mappings()]


def shadowed(connection: Connection, version: str, *, since: datetime, limit: int) -> list[Answered]:
    """Up to `limit` requests that the candidate ranked in the shadow since then, newest first."""
    s, r = shadow_rankings.c, recommendations.c
    query = (
        sa.select(r.recommendation_id, r.user_id, r.created_at, r["items"], s["items"].label("shadow"))
        .join(recommendations, r.recommendation_id == s.recommendation_id)
        .where(s.recommendation_id >= least_uuid7(since), s.created_at >= since, s.adapter_version == version)
        .order_by(s.recommendation_id.desc())
        .limit(limit)
    )
    return [Answered(row[0], row[1], row[2], _ids(row[3]), _ids(row[4])) for row in connection.execute(query)]


def armed(connection: Connection, *, since: datetime, until: datetime | None, limit: int) -> list[Answered]:
    """Up to `limit` requests of either arm of a canary since then, newest first."""
    r = recommendations.c
    query = (
        sa.select(r.recommendation_id, r.user_id, r.created_at, r["items"], r.arm)
        .where(_made(since, until), r.created_at >= since, r.arm.is_not(None))
        .order_by(r.recommendation_id.desc())
        .limit(limit)
    )
    if until is not None:
        query = query.where(r.created_at <= until)
    return [Answered(row[0], row[1], row[2], _ids(row[3]), (), row[4]) for row in connection.execute(query)]


def newest_since(connection: Connection, *, since: datetime, until: datetime | None, limit: int) -> datetime:
    """From when on no more than `limit` recommendations were made until then; `since` at the earliest."""
    own = recommendations.c.recommendation_id
    query = sa.select(own).where(_made(since, until)).order_by(own.desc()).offset(limit - 1).limit(1)
    last = connection.scalar(query)
    return since if last is None else max(since, moment_of(last))


def _made(since: datetime, until: datetime | None) -> sa.ColumnElement[bool]:
    """By id, so that the key alone is read; until: that millisecond included."""
    own = recommendations.c.recommendation_id
    bounds = [own >= least_uuid7(since)]
    if until is not None:
        bounds.append(own < least_uuid7(until + timedelta(milliseconds=1)))
    return sa.and_(*bounds)


def taken(
    connection: Connection, user_ids: Collection[str], after: datetime, until: datetime, ignored: Collection[str]
) -> list[Taken]:
    """What these users took, later than `after`, `until` included; events of ignored types do not count."""
    if not user_ids:
        return []
    mine = one_of(connection, events.c.user_id, user_ids)
    query = sa.select(*_TAKEN).where(
        mine, events.c.occurred_at > after, events.c.occurred_at <= until, events.c.event_type.not_in(ignored)
    )
    return [Taken(*row) for row in connection.execute(query)]


def naming(connection: Connection, recommendation_ids: Collection[str], ignored: Collection[str]) -> list[Taken]:
    """What was taken from these recommendations, as the events say that name them."""
    chosen = one_of(connection, events.c.recommendation_id, recommendation_ids)
    query = sa.select(*_TAKEN).where(chosen, events.c.event_type.not_in(ignored))
    return [Taken(*row) for row in connection.execute(query)]


def _ids(items: Sequence[Sequence[Any]]) -> tuple[str, ...]:
    return tuple(item_id for item_id, *_ in items)


def _row(row: sa.RowMapping) -> TrialRow:
    because = EndReason(row["because"]) if row["because"] is not None else None
    return TrialRow(**{**row, "deed": Deed(row["deed"]), "kind": Kind(row["kind"]), "because": because})
