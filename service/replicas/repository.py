"""SQL of replicas."""

from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.replicas.tables import replicas


@dataclass(frozen=True, slots=True)
class Replica:
    """One process that serves, as it said at `seen_at`."""

    replica_id: str
    host: str
    process: int
    started_at: datetime
    seen_at: datetime
    revision: int | None = None
    base_id: str | None = None
    adapter_version: str | None = None
    wanted_base_id: str | None = None
    wanted_version: str | None = None
    degraded: str | None = None
    trial_version: str | None = None
    trial_trouble: str | None = None


def write(connection: Connection, replica: Replica) -> None:
    """Insert or overwrite a replica's row. Only the replica itself writes it, so there is no rival."""
    values = asdict(replica)
    same = replicas.c.replica_id == values.pop("replica_id")
    if not connection.execute(replicas.update().where(same).values(**values)).rowcount:
        connection.execute(replicas.insert().values(replica_id=replica.replica_id, **values))


def delete(connection: Connection, replica_id: str) -> None:
    connection.execute(replicas.delete().where(replicas.c.replica_id == replica_id))


def delete_unseen(connection: Connection, since: datetime) -> int:
    """Delete replicas that have not been seen since then; how many."""
    return connection.execute(replicas.delete().where(replicas.c.seen_at < since)).rowcount


def list_all(connection: Connection) -> list[Replica]:
    """Every replica that is known, in order of their start."""
    query = sa.select(replicas).order_by(replicas.c.started_at, replicas.c.replica_id)
    return [Replica(**row) for row in connection.execute(query).mappings()]
