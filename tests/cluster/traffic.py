"""Steady traffic through the balancer, and the referee that knows what each version must answer."""

import threading
import uuid
from collections import defaultdict
from typing import Any

import httpx
import numpy as np
import sqlalchemy as sa

from service.adapters import repository as adapters
from service.adapters.artifacts import ArtifactStore
from service.catalog.follower import CatalogueFollower
from service.events.tables import events
from service.generation.engine import GenerationRequest
from service.generation.torch_engine import TorchEngine
from service.kit.db import Database
from service.settings import Settings
from tests import worlds

WATCHED = [f"u{number:02d}" for number in range(worlds.USERS // 2, worlds.USERS)]
"""Users who do nothing new while the cluster runs, so that a version has one right answer for each."""
LIMIT = 10
TOLERANCE = 1e-3  # of a score: rounding differs with the batch


class Traffic:
    """While the block runs, `clients` threads ask for recommendations and send events, each over one connection.

    replies: what each user got. failures: whatever was no 2xx, in words. acknowledged: identifiers of stored events.
    seconds: how long each recommendation took.
    """

    def __init__(self, address: str, headers: dict[str, str], clients: int = 2, *, writes: bool = True) -> None:
        self.replies: list[tuple[str, dict[str, Any]]] = []
        self.failures: list[str] = []
        self.acknowledged: list[str] = []
        self.seconds: list[float] = []
        self._address, self._headers, self._writes = address, headers, writes
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def run_for(self, seconds: float) -> None:
        self._ended.wait(seconds)

    def _run(self, number: int) -> None:
        with httpx.Client(base_url=self._address, headers=self._headers, timeout=30) as client:
            turn = 0
            while not self._ended.wait(0.01):
                turn += 1
                user = WATCHED[(turn * 7 + number) % len(WATCHED)]
                try:
                    self._turn(client, turn, user)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))

    def _turn(self, client: httpx.Client, turn: int, user: str) -> None:
        if turn % 3 == 0 and self._writes:  # impressions are stored but change nobody's past
            event = worlds.event(str(uuid.uuid4()), user, worlds.item_id(turn), worlds.START, "impression")
            reply = client.post("/v1/events", json={"events": [event]})
            if reply.status_code == 202:
                self.acknowledged.append(event["event_id"])
        elif turn % 3 == 1:
            reply = client.get(f"/v1/users/{user}/recommendations", params={"limit": LIMIT})
        else:
            reply = client.post("/v1/recommendations", json={"user_id": user, "limit": LIMIT})
        if reply.is_error:
            self.failures.append(f"{reply.request.method} {reply.request.url.path}: {reply.status_code} {reply.text}")
        elif "items" in reply.json():
            self.replies.append((user, reply.json()))
            self.seconds.append(reply.elapsed.total_seconds())


class Referee:
    """Answers for the watched users by each version's own artifact, loaded in this process."""

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database, self._artifacts = database, artifacts
        self._settings = Settings()
        self._engine = TorchEngine(device="cpu", dtype="float32", beams=self._settings.beams, threads=1)
        self._index = CatalogueFollower(database, self._settings.poll_interval).refresh()
        rows = {item.item_id: row for row, item in enumerate(self._index.items)}
        pasts: dict[str, list[int]] = defaultdict(list)
        for event in worlds.first_walks():
            pasts[event["user_id"]].append(rows[event["item_id"]])
        self._pasts = {user: np.array(pasts[user]) for user in WATCHED}
        self._answers: dict[str, dict[str, dict[str, float]]] = {}

    def assert_right(self, replies: list[tuple[str, dict[str, Any]]]) -> set[str]:
        """Every reply is what the version that it names answers; the versions that were named."""
        for user, reply in replies:
            assert reply["strategy"] == "personalised", reply
            answers = self._of(reply["model"]["adapter_version"])[user]
            assert len(reply["items"]) == LIMIT, reply
            best = sorted(answers.values(), reverse=True)[:LIMIT]
            got = [item["score"] for item in reply["items"]]
            assert np.allclose(got, best, rtol=0, atol=TOLERANCE), (user, reply, answers)
            for item in reply["items"]:
                # a leaf that rounding has put in the last place may be another one of the same score
                assert abs(answers.get(item["item_id"], best[-1]) - item["score"]) < TOLERANCE, (user, reply, answers)
        return {reply["model"]["adapter_version"] for _, reply in replies}

    def _of(self, version: str) -> dict[str, dict[str, float]]:
        if version not in self._answers:
            with self._database.read() as connection:
                adapter = adapters.find_adapter(connection, version)
                assert adapter is not None
                base_row = adapters.find_base(connection, adapter.base_id)
                assert base_row is not None
            base = self._artifacts.open_base(base_row.base_id, base_row.digest)
            model = self._engine.load(base, self._artifacts.open_adapter(version, adapter.digest, base))
            trie, codes = self._index.trie, self._index.codes
            asked = [
                GenerationRequest(codes[past[-self._settings.history_items :]], LIMIT, trie.excluded_leaves(past))
                for past in self._pasts.values()
            ]
            self._answers[version] = {
                user: {
                    self._index.items[row].item_id: float(score)
                    for leaf, score in zip(found.leaves.tolist(), found.scores.tolist(), strict=True)
                    for row in trie.rows_of(leaf).tolist()
                    if row not in past
                }
                for (user, past), found in zip(self._pasts.items(), model.generate(asked, trie), strict=True)
            }
            model.close()
        return self._answers[version]

    def assert_stored_once(self, acknowledged: list[str]) -> None:
        """Every acknowledged event is in the store, once."""
        with self._database.read() as connection:
            query = sa.select(events.c.event_id).where(events.c.event_id.in_(acknowledged))
            assert sorted(connection.scalars(query)) == sorted(acknowledged)
