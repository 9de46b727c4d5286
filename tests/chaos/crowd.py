"""Steady traffic over all of a test's processes, each reply with its time, status and reason."""

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import numpy as np

from tests import worlds
from tests.chaos.served import HOST, Served

EVENTS, RECOMMENDATIONS = "events", "recommendations"


@dataclass(frozen=True, slots=True)
class Seen:
    """at: when it was asked, monotonic. event_id: of what was sent."""

    kind: str
    at: float
    ms: float
    status: int
    strategy: str | None = None
    reason: str | None = None
    items: int = 0
    retry_after: str | None = None
    event_id: str | None = None


class Crowd:
    """Users who take an item and ask for more, the event at one process and the question at the next.

    stale: events that were acknowledged and whose item was recommended all the same.
    """

    def __init__(self, served: list[Served], users: int = 2, pause_s: float = 0.02) -> None:
        self._served, self._pause_s = served, pause_s
        self.seen: list[Seen] = []
        self.stale: list[str] = []
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(users)]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(60)

    def during(self, began: float, ended: float, kind: str) -> list[Seen]:
        """Asked within."""
        return [seen for seen in self.seen if seen.kind == kind and began <= seen.at < ended]

    @property
    def statuses(self) -> Counter[tuple[str, int]]:
        return Counter((seen.kind, seen.status) for seen in self.seen)

    @property
    def acknowledged(self) -> set[str]:
        return {seen.event_id for seen in self.seen if seen.event_id is not None and seen.status == 202}

    def _run(self, number: int) -> None:
        clients = [
            httpx.Client(base_url=f"http://{HOST}:{one.port}", headers=one.client.headers, timeout=60)
            for one in self._served
        ]
        turn = 0
        while not self._done.wait(self._pause_s):
            one, two = clients[turn % len(clients)], clients[(turn + 1) % len(clients)]
            user, item, event_id = f"user-{number}-{turn // worlds.ITEMS}", worlds.item_id(turn), f"{number}-{turn}"
            event = worlds.event(event_id, user, item, worlds.START + timedelta(seconds=turn))
            sent = self._note(EVENTS, one, "/v1/events", {"events": [event]}, event_id)
            reply = self._note(RECOMMENDATIONS, two, "/v1/recommendations", {"user_id": user, "limit": 100})
            known = reply.status_code == 200 and reply.json()["fallback_reason"] != "store_unavailable"
            if sent.status_code == 202 and known and item in [found["item_id"] for found in reply.json()["items"]]:
                self.stale.append(event["event_id"])
            turn += 1
        for client in clients:
            client.close()

    def _note(
        self, kind: str, client: httpx.Client, path: str, body: dict[str, Any], event_id: str | None = None
    ) -> httpx.Response:
        at = time.monotonic()
        reply = client.post(path, json=body)
        ms, said = 1000 * (time.monotonic() - at), reply.json()
        of_reply = (said.get("strategy"), said.get("fallback_reason"), len(said.get("items", [])))
        self.seen.append(Seen(kind, at, ms, reply.status_code, *of_reply, reply.headers.get("Retry-After"), event_id))
        return reply


def p99_ms(seen: Iterable[Seen]) -> float:
    return float(np.percentile([one.ms for one in seen], 99))
