"""A store of any schema version filled with made-up rows, and what it holds and looks like, to be compared.

Everything is found out from the store itself, so that it fits versions that are older than the code, and new ones.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.events.partitions import WIDTH
from service.kit.db import Database
from service.tables import declared

SEQUENCES = "(sequences)"
"""Under this name `contents` has the counters of the store."""
AGAIN = 500
"""Added to a revision's number for a second filling."""
START = datetime(2026, 1, 1, tzinfo=UTC)

Rows = dict[tuple[Any, ...], dict[str, Any]]


def fill(database: Database, revision: str, count: int, *, again: bool = False) -> None:
    """Put `count` rows more into each table, other ones for each revision; a table of one row gets other values."""
    tag = int(revision) + AGAIN * again
    with database.write(patient=True) as connection:
        if connection.dialect.name == "postgresql" and _is_partitioned(connection):
            # From the end of one partition into the next, and in the end into none.
            connection.execute(sa.text(f"SELECT setval('events_seq_seq', {tag * WIDTH - count // 2})"))
        made: dict[str, list[Mapping[str, Any]]] = {}
        for table in _tables(connection).sorted_tables:
            if table.name != "alembic_version":
                made[table.name] = _fill(connection, table, made, tag, count)
        last = connection.execute(sa.text("SELECT max(seq), max(event_id) FROM events")).one()
        newest = connection.scalar(sa.text("SELECT event_id FROM events WHERE seq = :seq"), {"seq": last[0]})
        connection.execute(sa.text("DELETE FROM events WHERE seq = :seq"), {"seq": last[0]})  # its number stays used
        if "event_ids" in made:
            connection.execute(sa.text("DELETE FROM event_ids WHERE event_id = :id"), {"id": newest})


def contents(database: Database) -> dict[str, Rows]:
    """Every row of every table by its key, and the counters."""
    found: dict[str, Rows] = {}
    with database.read(patient=True) as connection:
        for (_, name), key in sa.inspect(connection).get_multi_pk_constraint().items():
            if name == "alembic_version" or not declared(name, "table", None):
                continue
            rows = connection.execute(sa.text(f'SELECT * FROM "{name}"')).mappings()  # noqa: S608
            found[name] = {tuple(row[column] for column in key["constrained_columns"]): dict(row) for row in rows}
        if connection.dialect.name == "postgresql":
            names = connection.scalars(sa.text("SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'"))
            counters = {
                name: tuple(connection.execute(sa.text(f"SELECT last_value, is_called FROM {name}")).one())  # noqa: S608
                for name in names.all()
            }
        else:
            counters = {name: seq for name, seq in connection.execute(sa.text("SELECT name, seq FROM sqlite_sequence"))}
        found[SEQUENCES] = {(name,): {"value": value} for name, value in counters.items()}
    return found


def schema(database: Database) -> dict[str, Any]:
    """Tables, columns, keys, indexes, checks and triggers, each as the store describes it."""
    found: dict[str, Any] = {}
    with database.read() as connection:
        inspector = sa.inspect(connection)
        for name in sorted(inspector.get_table_names()):
            if not declared(name, "table", None):
                continue
            columns = [
                (c["name"], str(c["type"]), c["nullable"], str(c["default"]), c.get("comment"))
                for c in inspector.get_columns(name)
            ]
            found[name] = {
                "columns": sorted(columns),
                "key": inspector.get_pk_constraint(name),
                "foreign": _described(inspector.get_foreign_keys(name)),
                "unique": _described(inspector.get_unique_constraints(name)),
                "checks": _described(inspector.get_check_constraints(name)),
                "indexes": _described(inspector.get_indexes(name)),
            }
        triggers = (
            "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1"
            if connection.dialect.name == "postgresql"
            else "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY 1"
        )
        found["(triggers)"] = [tuple(row) for row in connection.execute(sa.text(triggers))]
    return found


def lost(before: Mapping[str, Rows], after: Mapping[str, Rows], *, only_common: bool = False) -> set[str]:
    """What `before` held and `after` does not: tables of which rows are gone, table.column of values that changed.

    only_common: without tables and columns that are wholly gone.
    """
    found = set()
    for name, rows in before.items():
        if name not in after:
            if not only_common:
                found.add(name)
            continue
        now = after[name]
        if rows.keys() - now.keys() and not (only_common and name == SEQUENCES):  # one goes with its table
            found.add(name)
        columns = set(next(iter(now.values()), {}))
        for key in rows.keys() & now.keys():
            for column, value in rows[key].items():
                if column in columns or not only_common:
                    gone = column not in columns or now[key][column] != value
                    found |= {f"{name}.{column}"} if gone else set()
    return found


def _described(parts: Any) -> list[str]:
    """Texts that can be compared; a condition is an object of SQLAlchemy's."""
    return sorted(repr(sorted((key, str(value)) for key, value in _flat(part))) for part in parts)


def _flat(part: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in part.items():
        found += _flat(value, f"{above}{key}.") if isinstance(value, dict) else [(above + key, value)]
    return found


def _is_partitioned(connection: Connection) -> bool:
    kind = connection.scalar(sa.text("SELECT relkind FROM pg_class WHERE oid = to_regclass('events')"))
    return bool(kind == "p")


def _tables(connection: Connection) -> sa.MetaData:
    tables = sa.MetaData()
    tables.reflect(connection, only=lambda name, _: declared(name, "table", None))
    return tables


def _fill(
    connection: Connection, table: sa.Table, made: Mapping[str, list[Mapping[str, Any]]], tag: int, count: int
) -> list[Mapping[str, Any]]:
    """Returns the new rows, with their keys."""
    keys = list(table.primary_key)
    counted = [
        c
        for c in keys
        if len(keys) == 1 and isinstance(c.type, sa.Integer) and c.autoincrement is not False and not c.foreign_keys
    ]
    single = len(keys) == 1 and keys[0].name == "id"
    rows = [
        {c.name: _value(table, c, made, tag, number) for c in table.columns if single or c not in counted}
        for number in range(1 if single else count)
    ]
    if single:
        rows[0]["id"] = 1
        connection.execute(table.delete())
    insert = table.insert().returning(*table.columns, sort_by_parameter_order=True)
    return [dict(row) for row in connection.execute(insert, rows).mappings()]


def _value(
    table: sa.Table, column: sa.Column[Any], made: Mapping[str, list[Mapping[str, Any]]], tag: int, number: int
) -> Any:
    place = tag * 1_000_000 + number
    for key in column.foreign_keys:
        parents = made[key.column.table.name]
        return parents[number % len(parents)][key.column.name]
    if column.nullable and number % 3 == 2:
        return None
    match f"{table.name}.{column.name}":
        case "windows.after_seq":
            return 10 * place
        case "windows.through_seq":
            return 10 * place + 5
        case "adapters.state":
            return ("passed", "refused", "collected" if tag % AGAIN >= 5 else "corrupt")[number % 3]
    if column.name == "body_hash":
        digest = hashlib.sha256(f"{place}".encode())
        return digest.hexdigest() if isinstance(column.type, sa.String) else digest.digest()
    match column.type:
        case sa.Boolean():
            return number % 2 == 0
        case sa.SmallInteger():
            return number % 256
        case sa.Integer():
            return place
        case sa.Float():
            return number / 3 + 0.1
        case sa.DateTime():
            at = START + timedelta(days=tag, minutes=number, microseconds=number + 1)
            return at if _keeps_zone(column) else at.replace(tzinfo=None)
        case sa.LargeBinary():
            return hashlib.sha256(f"{column.name} {place}".encode()).digest()
        case sa.JSON():
            return {"number": place, "nested": [None, 0.1, "ü'\""]}
        case sa.String():
            return f"{place}-{column.name}-ü'\"\\"[: column.type.length or 200]
    raise NotImplementedError(f"{table.name}.{column.name} is {column.type!r}: say here what it may hold")


def _keeps_zone(column: sa.Column[Any]) -> bool:
    return bool(getattr(column.type, "timezone", False))
