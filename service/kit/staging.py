"""Many rows into a statement on PostgreSQL: COPY into a table that lasts as long as the transaction."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection


def copy_rows(connection: Connection, name: str, columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> None:
    """Fill the temporary table `name` with `rows`, its columns (name -> type) after `ordinality`, which counts from 1.

    It is gone with the transaction, so a pooler in between does not matter. A type is text, bytea, bigint and so on;
    a jsonb value is given as its text.
    """
    declared = ", ".join(f"{column} {kind}" for column, kind in columns.items())
    connection.exec_driver_sql(
        f"CREATE TEMPORARY TABLE {name} (ordinality bigint GENERATED ALWAYS AS IDENTITY, {declared}) ON COMMIT DROP"
    )
    driver: Any = connection.connection.driver_connection
    statement = f"COPY {name} ({', '.join(columns)}) FROM STDIN"
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)
    # Without, the planner takes it for a table of a few pages and may compare every row with every other.
    connection.exec_driver_sql(f"ANALYZE {name}")
