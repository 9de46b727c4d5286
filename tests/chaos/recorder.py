"""Clients that move and read the pointer through replicas that die and stall, and what each of them saw."""

import random
import re
import threading
import time
import uuid
from dataclasses import dataclass, field

import httpx

from tests import worlds
from tests.chaos.linearizability import Operation, Promote, Read, RollBack, Told

PATH = "/v1/admin/adapters"
PATIENCE_S = 1.0  # for an answer; a replica that is paused for longer leaves its clients in the dark
WATCHED = f"u{worlds.USERS - 1:02d}"


@dataclass
class Sight:
    """What a replica said within one look: the revision that it serves, the version that a reply named, again."""

    before: int
    version: str | None
    after: int


@dataclass
class Recording:
    operations: list[Operation] = field(default_factory=list)
    sights: dict[str, list[Sight]] = field(default_factory=dict)
    retried: int = 0
    """Moves that were asked for again with their key, since the first answer did not come."""
    refused: list[str] = field(default_factory=list)
    """Answers that no replica may give."""


class Recorder:
    """While the block runs, `admins` threads ask the replicas at `addresses`, and one for each replica looks at it."""

    def __init__(
        self, addresses: list[str], headers: dict[str, str], versions: list[str], seed: int, admins: int = 3
    ) -> None:
        self.seen = Recording(sights={address: [] for address in addresses})
        self._addresses, self._headers, self._versions = addresses, headers, versions
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._admin, args=(random.Random(f"{seed}-{number}"),)) for number in range(admins)
        ]
        self._threads += [threading.Thread(target=self._look_at, args=(address,)) for address in addresses]

    def __enter__(self) -> Recording:
        for thread in self._threads:
            thread.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def _admin(self, draw: random.Random) -> None:
        shown = 0
        with httpx.Client(headers=self._headers, timeout=PATIENCE_S) as client:
            while not self._ended.wait(draw.uniform(0, 0.1)):
                operation = self._turn(client, draw, shown)
                if operation is not None:
                    self.seen.operations.append(operation)
                    if isinstance(operation.told, Told) and operation.told.revision is not None:
                        shown = operation.told.revision

    def _turn(self, client: httpx.Client, draw: random.Random, shown: int) -> Operation | None:
        """One question, asked again elsewhere with the same key while no answer comes; None: it was never sent."""
        revision = draw.choice([None, shown or None])
        questions: list[Read | Promote | RollBack] = [
            Read(),
            Promote(draw.choice(self._versions), revision),
            Promote(draw.choice(self._versions), revision),
            RollBack(None, revision),
            RollBack(draw.choice([*self._versions, "base"]), revision),
        ]
        asked = draw.choice(questions)
        key, began, sent = uuid.uuid4().hex, time.monotonic(), False
        for attempt in range(draw.randint(1, 3)):
            self.seen.retried += bool(sent and attempt)
            try:
                reply = _send(client, draw.choice(self._addresses), asked, key)
            except httpx.ConnectError:
                continue  # nobody was there to hear it
            except httpx.TransportError:
                sent = True
                continue
            told = _told(reply)
            if told is None:
                sent = True
                if reply.status_code != 503:
                    self.seen.refused.append(f"{asked}: {reply.status_code} {reply.text}")
                continue
            if sent and told.status == 409:  # the one before may still be on its way, and be granted
                continue
            return Operation(asked, told, began, time.monotonic())
        return Operation(asked, None, began) if sent and not isinstance(asked, Read) else None

    def _look_at(self, address: str) -> None:
        with httpx.Client(base_url=address, headers=self._headers, timeout=PATIENCE_S) as client:
            while not self._ended.wait(0.02):
                try:
                    sight = look(client)
                except httpx.HTTPError:
                    continue
                if sight is not None:
                    self.seen.sights[address].append(sight)


def look(client: httpx.Client) -> Sight | None:
    """What a replica serves now; None before its first model, or when its reply names none. Raises HTTPError."""
    before = served_revision(client)
    reply = client.get(f"/v1/users/{WATCHED}/recommendations").raise_for_status().json()
    if not before or reply["model"] is None:
        return None
    return Sight(before, reply["model"]["adapter_version"], served_revision(client))


def served_revision(client: httpx.Client) -> int:
    """adaptide_served_revision of a replica; 0 before its first model. Raises HTTPError."""
    text = client.get("/metrics").raise_for_status().text
    found = re.search(r"^adaptide_served_revision (\S+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else 0


def _send(client: httpx.Client, address: str, asked: Read | Promote | RollBack, key: str) -> httpx.Response:
    if isinstance(asked, Read):
        return client.get(f"{address}{PATH}", params={"limit": 1})
    headers = {"Idempotency-Key": key}
    if asked.revision is not None:
        headers["If-Match"] = f'"{asked.revision}"'
    if isinstance(asked, Promote):
        return client.post(f"{address}{PATH}/{asked.version}/promote", headers=headers)
    return client.post(f"{address}{PATH}/rollback", headers=headers, json={"to_version": asked.to})


def _told(reply: httpx.Response) -> Told | None:
    """None for an answer that leaves open what was done."""
    if reply.status_code in (409, 412):
        return Told(reply.status_code)
    if reply.status_code != 200:
        return None
    body = reply.json()
    if "active" in body:
        return Told(200, body["active"]["revision"], body["active"]["adapter_version"])
    return Told(200, body["revision"], body["to_version"], body["from_version"])
