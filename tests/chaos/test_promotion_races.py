"""Scenario 12: promotions that race through two replicas of one store."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import sqlalchemy as sa

from service.access.schemas import Scope
from service.access.service import AccessService
from service.adapters.artifacts import ArtifactStore
from service.adapters.tables import activations
from service.audit.tables import audit_log
from service.kit import migrate
from service.kit.clock import utc_now
from service.kit.db import Database
from tests.chaos.scenarios import FULL, sized
from tests.cluster.cluster import UP_S, Process, answers, free_port
from tests.cluster.nursery import Nursery
from tests.cluster.running import another
from tests.conftest import PostgresStore
from tests.worlds import eventually

if TYPE_CHECKING:
    from tests.built import BuiltWorld

PATH = "/v1/admin/adapters"


@dataclass
class Pair:
    """Two replicas over one store, each asked directly, and three adapters."""

    database: Database
    clients: list[httpx.Client]
    versions: list[str]

    def race(self, *asks: Callable[[httpx.Client], httpx.Response]) -> list[httpx.Response]:
        """The answers to the first ask by the one replica and the second by the other, at the same moment."""
        gate = threading.Barrier(len(asks))

        def one(client: httpx.Client, ask: Callable[[httpx.Client], httpx.Response]) -> httpx.Response:
            gate.wait(30)
            return ask(client)

        with ThreadPoolExecutor(len(asks)) as pool:
            return list(pool.map(one, self.clients, asks))

    def rows(self, revision: int) -> tuple[int, int]:
        """Activations after a revision, and entries of the audit log with their numbers."""
        count = sa.func.count()
        with self.database.read() as connection:
            ids = list(connection.scalars(sa.select(activations.c.audit_id).where(activations.c.revision > revision)))
            query = sa.select(count).select_from(audit_log).where(audit_log.c.audit_id.in_(ids))
            return len(ids), connection.scalar(query) or 0

    def audited(self) -> int:
        """How many promotions the audit log has; a refusal leaves a row of its own kind."""
        query = sa.select(sa.func.count()).select_from(audit_log).where(audit_log.c.action == "adapter.promote")
        with self.database.read() as connection:
            return connection.scalar(query) or 0


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def pair(request: pytest.FixtureRequest, tmp_path: Path, nursery: Nursery, built_world: "BuiltWorld") -> Iterator[Pair]:
    folder = tmp_path
    store: PostgresStore | None = None
    if request.param == "postgresql":
        store = request.getfixturevalue("_postgres")
        url = store.url
    else:
        url = f"sqlite:///{folder / 'adaptide.db'}"
    database = Database(url)
    clients: list[httpx.Client] = []
    processes: list[Process] = []
    try:
        migrate.upgrade(database)
        built = built_world.copy_into(database, folder / "artifacts")
        assert built.adapter_version is not None
        artifacts = ArtifactStore(folder / "artifacts")
        noisy = [another(database, artifacts, folder, built.adapter_version, seed) for seed in (1, 2)]
        key = AccessService(database, utc_now).create("tests", frozenset({Scope.ADMIN}), actor="cli")
        for number in range(2):
            port = free_port(["127.0.0.1"])
            own = {
                "HOME": str(folder / "home"),
                "ARTIFACTS_URL": str(folder / "artifacts"),
                "DATABASE_URL": url,
                "PORT": str(port),
                "THREADS": "1",
                "DEVICE": "cpu",
                "DRAIN": "0",
            }
            environment = {f"ADAPTIDE_{name}": value for name, value in own.items()} | {"OMP_NUM_THREADS": "1"}
            processes.append(Process(nursery, ["serve"], environment, folder / f"serve-{number}.log"))
            headers = {"Authorization": f"Bearer {key.token}"}
            clients.append(httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30))
        for client in clients:
            eventually(lambda client=client: answers(str(client.base_url.join("/health/ready"))) is not None, UP_S)
        yield Pair(database, clients, [built.adapter_version, *noisy])
    finally:
        for client in clients:
            client.close()
        for process in processes:
            process.signal(signal.SIGKILL)
            process.wait(30)
        database.close()
        if store is not None:
            store.reset()


@pytest.mark.e2e
@pytest.mark.timeout(3600 if FULL else 600)
@pytest.mark.scenario(12)
def test_of_two_promotions_that_race_one_is_made_and_twins_are_one(pair: Pair, figures: dict[str, Any]) -> None:
    rounds = sized(40, 500)
    first_won = 0
    for number in range(rounds):
        shown = pair.clients[0].get(PATH).raise_for_status()
        etag, active = shown.headers["ETag"], shown.json()["active"]
        audited = pair.audited()

        # Two that are not active, each asked for on the same revision
        rivals = [version for version in pair.versions if version != active["adapter_version"]]
        replies = pair.race(*(_promotion(version, {"If-Match": etag}) for version in rivals))
        assert sorted(reply.status_code for reply in replies) == [200, 412], [reply.text for reply in replies]
        won = replies[0] if replies[0].status_code == 200 else replies[1]
        first_won += won is replies[0]
        assert won.json()["revision"] == active["revision"] + 1
        assert pair.rows(active["revision"]) == (1, 1)
        assert pair.audited() == audited + 1

        # The same request with the same key, sent to both
        etag = f'"{won.json()["revision"]}"'
        version = next(version for version in rivals if version != won.json()["to_version"])
        twins = pair.race(*[_promotion(version, {"If-Match": etag, "Idempotency-Key": f"twin-{number}"})] * 2)
        assert [reply.status_code for reply in twins] == [200, 200], [reply.text for reply in twins]
        assert twins[0].json() == twins[1].json()
        assert pair.rows(won.json()["revision"]) == (1, 1)
        assert pair.audited() == audited + 2
    figures |= {"store": pair.database.dialect, "rounds": rounds, "one_200_one_412": rounds, "first_won": first_won}


def _promotion(version: str, headers: dict[str, str]) -> Callable[[httpx.Client], httpx.Response]:
    return lambda client: client.post(f"{PATH}/{version}/promote", headers=headers)
