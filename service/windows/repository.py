"""SQL of windows and evaluations."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.events.repository import max_seq
from service.events.tables import events
from service.kit.db import limit_lock_waits
from service.windows.states import TERMINAL, Pending, SealedBecause, WindowState
from service.windows.tables import evaluations, windows


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One subject (candidate, incumbent, base, popularity) scored on a window's users."""

    subject: str
    users: int
    hit_5: float
    hit_10: float
    ndcg_5: float
    ndcg_10: float
    adapter_version: str | None = None
    comparison: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """A sealed range of the event sequence, after_seq exclusive to through_seq inclusive, and what came of it."""

    window_id: int
    after_seq: int
    through_seq: int
    events: int
    state: WindowState
    sealed_at: datetime
    sealed_because: SealedBecause
    lease_fence: int | None
    attempts: int
    started_at: datetime | None
    finished_at: datetime | None
    method: str | None
    base_id: str | None
    incumbent_version: str | None
    candidate_version: str | None
    verdict: str | None
    reason: str | None
    steps: list[dict[str, Any]] | None
    statistics: dict[str, Any] | None
    evaluations: list[Evaluation] = field(default_factory=list, kw_only=True)


def lock_event_order(connection: Connection, timeout_s: float) -> None:
    """Hold still until commit: every event with a lower sequence is then visible, and windows have one sealer.

    Sequence numbers are given before the transaction that uses them commits, so the newest visible event may have an
    older one still in flight, which a window sealed there would lose. An INSERT holds ROW EXCLUSIVE on its table until
    it commits; SHARE conflicts with that, so this waits for each writer in flight and makes new ones wait before they
    take a number (the sequence has no cache, and the lock comes before nextval). SHARE does not conflict with itself,
    so two sealers are kept apart by the lock on windows. While this waits, writers queue behind it: hence the short
    timeout, after which the caller tries again later. Every write goes through `events` itself and so holds its lock:
    those of its partitions need not be taken, however many there are. On SQLite the transaction is BEGIN IMMEDIATE: no
    other writes.
    """
    if connection.dialect.name == "postgresql":
        limit_lock_waits(connection, timeout_s)
        connection.execute(sa.text("LOCK TABLE windows IN SHARE ROW EXCLUSIVE MODE"))
        connection.execute(sa.text("LOCK TABLE ONLY events IN SHARE MODE"))


def ends(connection: Connection) -> list[tuple[int, int]]:
    """(through_seq, window_id) of every sealed window, in their order: one begins where the one before it ends."""
    query = sa.select(windows.c.through_seq, windows.c.window_id).order_by(windows.c.through_seq)
    return [(through_seq, window_id) for through_seq, window_id in connection.execute(query)]


def last_through_seq(connection: Connection) -> int:
    """Where the open window begins (exclusive); 0 before the first seal."""
    highest: int = connection.execute(sa.select(sa.func.coalesce(sa.func.max(windows.c.through_seq), 0))).scalar_one()
    return highest


def begin_of(connection: Connection, through_seq: int) -> int | None:
    """Where the sealed window that ends there begins (exclusive); None when none ends there."""
    found: int | None = connection.scalar(sa.select(windows.c.after_seq).where(windows.c.through_seq == through_seq))
    return found


def finished_through(connection: Connection, sealed_before: datetime, attempts: int) -> int:
    """The last event of the windows that were sealed before then and are done with, as all before them are; 0: none.

    attempts: a window that failed so often is done with.
    """
    done = sa.or_(
        windows.c.state.in_([state.value for state in TERMINAL]),
        sa.and_(windows.c.state == WindowState.FAILED.value, windows.c.attempts >= attempts),
    )
    first = sa.select(sa.func.min(windows.c.after_seq)).where(sa.or_(windows.c.sealed_at >= sealed_before, ~done))
    through: int | None = connection.scalar(first)
    return last_through_seq(connection) if through is None else through


def first_trained(connection: Connection) -> datetime | None:
    """When the first window of which an event is still stored began to be trained; None without any."""
    first = sa.select(sa.func.min(events.c.seq)).scalar_subquery()
    query = sa.select(sa.func.min(windows.c.started_at)).where(windows.c.through_seq >= first)
    found: datetime | None = connection.scalar(query)
    return found


def read_pending(connection: Connection, limit: int) -> Pending:
    """The open window, counted up to `limit` events."""
    after = last_through_seq(connection)
    first = _first_received(connection, after)
    # Bounded, so that a long backlog does not make each tick slower.
    rows = sa.select(events.c.seq).where(events.c.seq > after).order_by(events.c.seq).limit(limit).subquery()
    count = connection.execute(sa.select(sa.func.count()).select_from(rows)).scalar_one()
    return Pending(after, count, first)


def bound_pending(connection: Connection) -> Pending:
    """The open window without counting it: its events are the sequence numbers that it spans, some of which may be of
    none (a repetition, an erasure)."""
    after = last_through_seq(connection)
    return Pending(after, max(0, max_seq(connection) - after), _first_received(connection, after))


def _first_received(connection: Connection, after_seq: int) -> datetime | None:
    unsealed = sa.select(events.c.received_at).where(events.c.seq > after_seq)
    found: datetime | None = connection.scalar(unsealed.order_by(events.c.seq).limit(1))
    return found


def waiting(connection: Connection, attempts: int) -> tuple[int, int]:
    """(windows, events in them) that are sealed and not done with. attempts: one that failed so often is done with."""
    again = sa.and_(windows.c.state == WindowState.FAILED.value, windows.c.attempts < attempts)
    open_states = [WindowState.SEALED.value, WindowState.TRAINING.value]
    query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(windows.c.events), 0))
    found, held = connection.execute(query.where(sa.or_(windows.c.state.in_(open_states), again))).one()
    return found, int(held)


def done_after(connection: Connection, through_seq: int) -> int:
    """Events behind it, up to the end of the last window that has its outcome."""
    outcomes = windows.c.state.in_([state.value for state in TERMINAL])
    last: int | None = connection.scalar(sa.select(sa.func.max(windows.c.through_seq)).where(outcomes))
    return 0 if last is None or last <= through_seq else measure(connection, through_seq, last, None)[0]


def oldest_unsettled(connection: Connection, attempts: int) -> Window | None:
    """The window that the updater takes up next. attempts: one that failed so often is done with."""
    given_up = sa.and_(windows.c.state == WindowState.FAILED.value, windows.c.attempts >= attempts)
    query = sa.select(windows).where(windows.c.state.not_in([state.value for state in TERMINAL]), ~given_up)
    row = connection.execute(query.order_by(windows.c.window_id).limit(1)).mappings().one_or_none()
    return None if row is None else _window(row, [])


def measure(connection: Connection, after_seq: int, through_seq: int | None, limit: int | None) -> tuple[int, int]:
    """(events, highest sequence) of the range after `after_seq`, up to `through_seq`, `limit` events at most."""
    query = sa.select(events.c.seq).where(events.c.seq > after_seq).order_by(events.c.seq)
    if through_seq is not None:
        query = query.where(events.c.seq <= through_seq)
    if limit is not None:
        query = query.limit(limit)
    rows = query.subquery()
    count, highest = connection.execute(sa.select(sa.func.count(), sa.func.max(rows.c.seq))).one()
    return count, highest if highest is not None else after_seq


def insert(connection: Connection, values: Mapping[str, Any]) -> int:
    """A new window; returns its window_id."""
    window_id: int = connection.execute(windows.insert().values(**values).returning(windows.c.window_id)).scalar_one()
    return window_id


def update(connection: Connection, window_id: int, values: Mapping[str, Any]) -> None:
    connection.execute(windows.update().where(windows.c.window_id == window_id).values(**values))


def find(connection: Connection, window_id: int, *, lock: bool = False) -> Window | None:
    if lock:
        _announce_update(connection)
    query = sa.select(windows).where(windows.c.window_id == window_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
    return None if row is None else _window(row, _evaluations(connection, [window_id]).get(window_id, []))


def in_states(connection: Connection, states: Iterable[WindowState]) -> list[Window]:
    """Windows in any of `states`, oldest first, locked."""
    _announce_update(connection)
    query = sa.select(windows).where(windows.c.state.in_([state.value for state in states]))
    rows = connection.execute(query.order_by(windows.c.window_id).with_for_update()).mappings()
    return [_window(row, []) for row in rows]


def page(connection: Connection, *, limit: int, before: int | None) -> list[Window]:
    """Up to `limit` windows older than `before`, newest first, with their evaluations."""
    query = sa.select(windows).order_by(windows.c.window_id.desc()).limit(limit)
    if before is not None:
        query = query.where(windows.c.window_id < before)
    rows = connection.execute(query).mappings().all()
    found = _evaluations(connection, [row["window_id"] for row in rows])
    return [_window(row, found.get(row["window_id"], [])) for row in rows]


def write_evaluation(connection: Connection, window_id: int, evaluation: Evaluation, now: datetime) -> None:
    """Record an evaluation; that of an earlier attempt on the same subject is replaced."""
    same = sa.and_(evaluations.c.window_id == window_id, evaluations.c.subject == evaluation.subject)
    connection.execute(evaluations.delete().where(same))
    values = {name: getattr(evaluation, name) for name in Evaluation.__dataclass_fields__}
    connection.execute(evaluations.insert().values(**values, window_id=window_id, created_at=now))


def _announce_update(connection: Connection) -> None:
    # Row locks alone would let a sealer in between them and the update that follows; the two could block each other.
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("LOCK TABLE windows IN ROW EXCLUSIVE MODE"))


def _evaluations(connection: Connection, window_ids: list[int]) -> dict[int, list[Evaluation]]:
    query = sa.select(evaluations).where(evaluations.c.window_id.in_(window_ids)).order_by(evaluations.c.evaluation_id)
    found: dict[int, list[Evaluation]] = {}
    for row in connection.execute(query).mappings():
        evaluation = Evaluation(**{name: row[name] for name in Evaluation.__dataclass_fields__})
        found.setdefault(row["window_id"], []).append(evaluation)
    return found


def _window(row: sa.RowMapping, found: list[Evaluation]) -> Window:
    values = {**row, "state": WindowState(row["state"]), "sealed_because": SealedBecause(row["sealed_because"])}
    return Window(**values, evaluations=found)
