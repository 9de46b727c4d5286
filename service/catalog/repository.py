"""SQL of items. Whoever writes calls lock_revision first: catalogue writes happen one after the other."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from service.catalog.tables import catalog_revision, item_history, items
from service.kit import staging
from service.kit.db import BigInt, one_of

Codes = tuple[int, int, int, int]

_CODES = (items.c.code_0, items.c.code_1, items.c.code_2, items.c.code_3)
_CONTENT = ("title", "description", "categories", "brand", "available")
_COPIED_COLUMNS = {
    "item_id": "text",
    "title": "text",
    "description": "text",
    "categories": "jsonb",
    "brand": "text",
    "available": "boolean",
}
_PUT_COPIED = sa.text("""
    INSERT INTO items (item_id, title, description, categories, brand, available, created_at, updated_at, revision)
    SELECT item_id, title, description, categories, brand, available, :now, :now, :revision
    FROM copied_items ORDER BY ordinality
    ON CONFLICT (item_id) DO UPDATE SET
        title = excluded.title, description = excluded.description, categories = excluded.categories,
        brand = excluded.brand, available = excluded.available, deleted_at = NULL,
        updated_at = excluded.updated_at, revision = excluded.revision
""")
COPIED = 1_000
"""So many items at once are copied on PostgreSQL."""
_IN_CHUNK = 5_000  # ids in one IN list; SQLite takes 32,766 parameters


@dataclass(frozen=True, slots=True)
class StoredItem:
    """A row. codes: None until the item is encoded for base `base_id`. deleted_at: hidden, kept for training."""

    item_id: str
    title: str
    description: str | None
    categories: tuple[str, ...]
    brand: str | None
    available: bool
    deleted_at: datetime | None
    base_id: str | None
    codes: Codes | None
    created_at: datetime
    updated_at: datetime
    revision: int

    @property
    def servable(self) -> bool:
        """Whether it may be recommended (once it has codes)."""
        return self.available and self.deleted_at is None


def lock_revision(connection: Connection) -> int:
    """The present catalogue revision; no other transaction can change the catalogue until this one ends."""
    query = sa.select(catalog_revision.c.revision).where(catalog_revision.c.id == 1).with_for_update()
    revision: int = connection.execute(query).scalar_one()
    return revision


def current_revision(connection: Connection) -> int:
    query = sa.select(catalog_revision.c.revision).where(catalog_revision.c.id == 1)
    revision: int = connection.execute(query).scalar_one()
    return revision


def next_revision(connection: Connection) -> int:
    """A new revision for this transaction's writes; locks as lock_revision does, so revisions commit in order."""
    change = catalog_revision.update().where(catalog_revision.c.id == 1)
    change = change.values(revision=catalog_revision.c.revision + 1)
    revision: int = connection.execute(change.returning(catalog_revision.c.revision)).scalar_one()
    return revision


def by_ids(connection: Connection, item_ids: Collection[str]) -> dict[str, StoredItem]:
    """Those of `item_ids` that exist, deleted ones too."""
    found: dict[str, StoredItem] = {}
    for chunk in _chunks(item_ids):
        for row in connection.execute(sa.select(items).where(one_of(connection, items.c.item_id, chunk))):
            found[row.item_id] = _item(row)
    return found


def known(connection: Connection, item_ids: Collection[str]) -> set[str]:
    """Those of `item_ids` that have a row; a deleted item is known, since training keeps it."""
    found: set[str] = set()
    for chunk in _chunks(item_ids):
        found.update(connection.scalars(sa.select(items.c.item_id).where(one_of(connection, items.c.item_id, chunk))))
    return found


def changed_since(connection: Connection, revision: int, limit: int | None = None) -> list[StoredItem]:
    """Items written after `revision`, in order of (revision, item_id), deleted ones too.

    About `limit` at most: the last revision is always whole, so reading goes on from the last row's revision.
    """
    order = (items.c.revision, items.c.item_id)
    rows = connection.execute(sa.select(items).where(items.c.revision > revision).order_by(*order).limit(limit)).all()
    found = [_item(row) for row in rows]
    if limit is not None and len(found) == limit:
        last = found[-1]
        rest = sa.select(items).where(items.c.revision == last.revision, items.c.item_id > last.item_id)
        found += [_item(row) for row in connection.execute(rest.order_by(*order))]
    return found


def count(connection: Connection) -> int:
    """Items that are not deleted."""
    return connection.execute(sa.select(sa.func.count()).where(items.c.deleted_at.is_(None))).scalar_one()


def put_many(
    connection: Connection,
    rows: Sequence[Mapping[str, Any]],
    *,
    now: datetime,
    revision: int,
    there: Collection[str] | None = None,
) -> None:
    """Insert or replace whole items; undeletes; codes and created_at of an existing row stay.

    rows: mappings with item_id, title, description, categories, brand, available. there: those that have a row, if the
    caller knows: of the others no earlier state is looked for.
    """
    if not rows:
        return
    remember(connection, [row["item_id"] for row in rows] if there is None else there, revision)
    if connection.dialect.name == "postgresql" and len(rows) >= COPIED:
        staging.copy_rows(connection, "copied_items", _COPIED_COLUMNS, map(_as_copied, rows))
        connection.execute(_PUT_COPIED, {"now": now, "revision": revision})
        return
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(items)
    fresh = {name: statement.excluded[name] for name in (*_CONTENT, "deleted_at", "updated_at", "revision")}
    statement = statement.on_conflict_do_update(index_elements=[items.c.item_id], set_=fresh)
    stamps = {"deleted_at": None, "created_at": now, "updated_at": now, "revision": revision}
    connection.execute(statement, [{**row, **stamps} for row in rows])


def _as_copied(row: Mapping[str, Any]) -> list[Any]:
    return [orjson.dumps(row[name]).decode() if name == "categories" else row[name] for name in _COPIED_COLUMNS]


def delete(connection: Connection, item_id: str, *, now: datetime, revision: int) -> bool:
    """Hide the item; whether there was one to hide."""
    remember(connection, [item_id], revision)
    change = items.update().where(items.c.item_id == item_id, items.c.deleted_at.is_(None))
    return connection.execute(change.values(deleted_at=now, updated_at=now, revision=revision)).rowcount == 1


def without_codes(connection: Connection, base_id: str, limit: int) -> list[StoredItem]:
    """The first `limit` items by item_id that base `base_id` has not encoded, deleted ones too (training wants their
    codes)."""
    # Ranges, not `!=`, and sorted here: so that an index finds the few, in place of a pass over the catalogue.
    other = sa.or_(items.c.base_id.is_(None), items.c.base_id < base_id, items.c.base_id > base_id)
    first = sorted(connection.scalars(sa.select(items.c.item_id).where(other)))[:limit]
    found = by_ids(connection, first)
    return [found[item_id] for item_id in first]


def taken_codes(
    connection: Connection, base_id: str, prefixes: Collection[tuple[int, int, int]] | None = None
) -> set[Codes]:
    """The semantic IDs that items have under base `base_id`, all or those with one of these first three codes."""
    query = sa.select(*_CODES).where(items.c.base_id == base_id)
    if prefixes is None:
        return {(a, b, c, d) for a, b, c, d in connection.execute(query)}
    # One look-up each: SQLite searches an index for a row of values, but scans it for a list of rows.
    query = query.where(*(column == sa.bindparam(column.name) for column in _CODES[:3]))
    found: set[Codes] = set()
    for a, b, c in sorted(prefixes):
        wanted = {"code_0": a, "code_1": b, "code_2": c}
        found.update((a, b, c, d) for *_, d in connection.execute(query, wanted))
    return found


def set_codes(connection: Connection, base_id: str, codes: Mapping[str, Codes], *, revision: int) -> None:
    """Give items their codes under base `base_id`."""
    if not codes:
        return
    remember(connection, codes.keys(), revision)
    change = (
        items.update()
        .where(items.c.item_id == sa.bindparam("wanted"))
        .values(
            base_id=base_id,
            revision=revision,
            **{column.name: sa.bindparam(f"level_{level}") for level, column in enumerate(_CODES)},
        )
    )
    rows = [
        {"wanted": item_id, **{f"level_{level}": code for level, code in enumerate(own)}}
        for item_id, own in codes.items()
    ]
    connection.execute(change, rows)


def remember(connection: Connection, item_ids: Collection[str], revision: int) -> None:
    """Keep in item_history what these items are now, before `revision` changes them; every write of items calls it."""
    for chunk in _chunks(item_ids):
        connection.execute(_remember(one_of(connection, items.c.item_id, chunk), revision))


def _remember(chosen: sa.ColumnElement[bool], revision: int) -> sa.Insert:
    servable = sa.and_(items.c.available, items.c.deleted_at.is_(None))
    held = sa.select(
        items.c.item_id,
        items.c.revision,
        sa.literal(revision, BigInt),
        sa.func.now(),
        items.c.title,
        items.c.categories,
        items.c.brand,
        servable,
        items.c.base_id,
        *_CODES,
    ).where(chosen, items.c.revision < revision)
    return item_history.insert().from_select([column.name for column in item_history.c], held)


def history_since(connection: Connection) -> int:
    """The oldest catalogue revision that can still be shown."""
    query = sa.select(catalog_revision.c.history_since).where(catalog_revision.c.id == 1)
    since: int = connection.execute(query).scalar_one()
    return since


def state_at(connection: Connection, revision: int) -> Iterator[sa.Row[Any]]:
    """What every item was at `revision` (not before history_since): rows of item_id, title, categories, brand,
    servable, base_id, codes one by one, created_at; in no order."""
    servable = sa.and_(items.c.available, items.c.deleted_at.is_(None)).label("servable")
    what = (items.c.item_id, items.c.title, items.c.categories, items.c.brand, servable, items.c.base_id)
    present = sa.select(*what, *_CODES, items.c.created_at).where(items.c.revision <= revision)
    was = item_history.c
    earlier = (was.item_id, was.title, was.categories, was.brand, was.servable, was.base_id)
    codes = (was.code_0, was.code_1, was.code_2, was.code_3)
    replaced = (
        sa.select(*earlier, *codes, items.c.created_at)
        .join_from(item_history, items, items.c.item_id == was.item_id)
        .where(was.revision <= revision, was.until_revision > revision)
    )
    # One statement, so one snapshot: an item that is written meanwhile is neither there twice nor lost.
    yield from connection.execute(sa.union_all(present, replaced))


def forget_history(connection: Connection, before: datetime, limit: int) -> int:
    """Delete up to `limit` rows of item_history that were replaced before then, the oldest first; how many.

    The caller holds the revision (lock_revision).
    """
    was = item_history.c
    query = sa.select(was.item_id, was.revision, was.until_revision).where(was.replaced_at < before)
    found = connection.execute(query.order_by(was.until_revision, was.item_id).limit(limit)).all()
    if found:
        own = sa.tuple_(was.item_id, was.revision)
        for first in range(0, len(found), _IN_CHUNK):
            some = [(row.item_id, row.revision) for row in found[first : first + _IN_CHUNK]]
            connection.execute(item_history.delete().where(own.in_(some)))
        until = found[-1].until_revision
        raised = catalog_revision.update().where(catalog_revision.c.id == 1, catalog_revision.c.history_since < until)
        connection.execute(raised.values(history_since=until))
    return len(found)


def _chunks(ids: Collection[str]) -> Iterator[list[str]]:
    ordered = sorted(set(ids))
    for start in range(0, len(ordered), _IN_CHUNK):
        yield ordered[start : start + _IN_CHUNK]


def _item(row: sa.Row[Any]) -> StoredItem:
    codes = None if row.code_0 is None else (row.code_0, row.code_1, row.code_2, row.code_3)
    return StoredItem(
        item_id=row.item_id,
        title=row.title,
        description=row.description,
        categories=tuple(row.categories),
        brand=row.brand,
        available=row.available,
        deleted_at=row.deleted_at,
        base_id=row.base_id,
        codes=codes,
        created_at=row.created_at,
        updated_at=row.updated_at,
        revision=row.revision,
    )
