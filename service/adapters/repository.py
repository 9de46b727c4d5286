"""SQL of bases, adapters, the active pointer and its history."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.adapters.states import Action, AdapterState
from service.adapters.tables import activations, active_adapter, adapters, bases


@dataclass(frozen=True, slots=True)
class NewBase:
    """What is registered of a published base. digest: sha256 of its manifest; trained_through: newest event in it."""

    base_id: str
    digest: str
    trained_through: datetime | None = None
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Base(NewBase):
    created_at: datetime = field(kw_only=True)
    collected_at: datetime | None = field(default=None, kw_only=True)
    """When garbage collection removed its files."""


@dataclass(frozen=True, slots=True)
class NewAdapter:
    """What is registered of a published adapter. parent_version: what it was trained from, None for the bare base."""

    adapter_version: str
    base_id: str
    digest: str
    method: str
    parent_version: str | None = None
    window_id: int | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    trained_through: datetime | None = None


@dataclass(frozen=True, slots=True)
class Adapter(NewAdapter):
    state: AdapterState = field(kw_only=True)
    created_at: datetime = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Pointer:
    """What every replica serves. adapter_version None: the base alone; base_id None: nothing yet."""

    revision: int
    base_id: str | None
    adapter_version: str | None


@dataclass(frozen=True, slots=True)
class ActivationRow:
    """One move of the pointer, as it was recorded."""

    audit_id: str
    revision: int
    action: Action
    base_id: str
    from_version: str | None
    to_version: str | None
    window_id: int | None
    actor: str
    reason: str | None
    idempotency_key: str | None
    request_hash: str | None
    created_at: datetime


def insert_base(connection: Connection, base: NewBase, now: datetime) -> None:
    connection.execute(
        bases.insert().values(
            base_id=base.base_id,
            digest=base.digest,
            trained_through=base.trained_through,
            metrics=base.metrics,
            created_at=now,
        )
    )


def find_base(connection: Connection, base_id: str) -> Base | None:
    row = connection.execute(sa.select(bases).where(bases.c.base_id == base_id)).mappings().one_or_none()
    return None if row is None else Base(**row)


def list_bases(connection: Connection) -> list[Base]:
    """Every base, newest first."""
    query = sa.select(bases).order_by(bases.c.created_at.desc(), bases.c.base_id.desc())
    return [Base(**row) for row in connection.execute(query).mappings()]


def set_collected(connection: Connection, base_id: str, now: datetime) -> None:
    connection.execute(bases.update().where(bases.c.base_id == base_id).values(collected_at=now))


def insert_adapter(connection: Connection, adapter: NewAdapter, state: AdapterState, now: datetime) -> None:
    values = {column: getattr(adapter, column) for column in NewAdapter.__dataclass_fields__}
    connection.execute(adapters.insert().values(**values, state=state.value, created_at=now))


def find_adapter(connection: Connection, version: str) -> Adapter | None:
    query = sa.select(adapters).where(adapters.c.adapter_version == version)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _adapter(row)


def list_adapters(connection: Connection, *, limit: int | None, before: str | None = None) -> list[Adapter]:
    """Newest first; `before`: only what is older than this version."""
    query = sa.select(adapters).order_by(adapters.c.created_at.desc(), adapters.c.adapter_version.desc()).limit(limit)
    if before is not None:
        edge = sa.select(adapters.c.created_at).where(adapters.c.adapter_version == before).scalar_subquery()
        same = sa.and_(adapters.c.created_at == edge, adapters.c.adapter_version < before)
        query = query.where(sa.or_(adapters.c.created_at < edge, same))
    return [_adapter(row) for row in connection.execute(query).mappings()]


def newest_of_base(connection: Connection, base_id: str, limit: int) -> list[Adapter]:
    """The newest adapters of a base, newest first."""
    query = sa.select(adapters).where(adapters.c.base_id == base_id)
    query = query.order_by(adapters.c.created_at.desc(), adapters.c.adapter_version.desc()).limit(limit)
    return [_adapter(row) for row in connection.execute(query).mappings()]


def set_state(connection: Connection, version: str, state: AdapterState) -> None:
    """Only under the pointer's lock: whoever decides on a state holds it (see read_pointer)."""
    connection.execute(adapters.update().where(adapters.c.adapter_version == version).values(state=state.value))


def states_of(connection: Connection, base_id: str) -> dict[str, AdapterState]:
    """Version -> state of every adapter of a base."""
    query = sa.select(adapters.c.adapter_version, adapters.c.state).where(adapters.c.base_id == base_id)
    return {version: AdapterState(state) for version, state in connection.execute(query)}


def read_pointer(connection: Connection, *, lock: bool = False) -> Pointer:
    """The pointer; `lock`: nobody else moves it before this transaction ends."""
    query = sa.select(active_adapter.c.revision, active_adapter.c.base_id, active_adapter.c.adapter_version)
    row = connection.execute(query.with_for_update() if lock else query).one()
    return Pointer(*row)


def write_pointer(connection: Connection, pointer: Pointer) -> None:
    connection.execute(
        active_adapter.update().values(
            revision=pointer.revision, base_id=pointer.base_id, adapter_version=pointer.adapter_version
        )
    )


def insert_activation(connection: Connection, row: ActivationRow) -> None:
    values = {column: getattr(row, column) for column in ActivationRow.__dataclass_fields__}
    connection.execute(activations.insert().values(**{**values, "action": row.action.value}))


def find_activation(connection: Connection, idempotency_key: str) -> ActivationRow | None:
    query = sa.select(activations).where(activations.c.idempotency_key == idempotency_key)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _activation(row)


def activations_of_base(connection: Connection, base_id: str) -> list[ActivationRow]:
    """The pointer's moves since `base_id` was installed for the last time, oldest first, the installation included."""
    installed = (
        sa.select(sa.func.max(activations.c.revision))
        .where(activations.c.action == Action.BASE.value)
        .scalar_subquery()
    )
    query = sa.select(activations).where(activations.c.base_id == base_id, activations.c.revision >= installed)
    return [_activation(row) for row in connection.execute(query.order_by(activations.c.revision)).mappings()]


def activations_of_version(connection: Connection, version: str, limit: int) -> Sequence[ActivationRow]:
    """Moves to or from a version, newest first."""
    query = sa.select(activations).where(
        sa.or_(activations.c.from_version == version, activations.c.to_version == version)
    )
    rows = connection.execute(query.order_by(activations.c.revision.desc()).limit(limit)).mappings()
    return [_activation(row) for row in rows]


def _adapter(row: sa.RowMapping) -> Adapter:
    return Adapter(**{**row, "state": AdapterState(row["state"])})


def _activation(row: sa.RowMapping) -> ActivationRow:
    return ActivationRow(**{**row, "action": Action(row["action"])})
