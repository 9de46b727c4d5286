"""Load as a shop makes it, for Locust (`make locust`, or pip install locust).

    ADAPTIDE_LOAD_KEY=ak_.. .venv-load/bin/locust -f docs/examples/locustfile.py --host http://127.0.0.1:8000

Of ten requests seven ask for recommendations, two send what was seen and clicked, one looks up an item. Users are
drawn so that few come often (Zipf); ADAPTIDE_LOAD_USERS is how many there are (10,000). The key has the scopes read and
write. Point it only at a service of your own whose events you can do without: what it sends is stored.
"""

import os
import random
import sys
import uuid
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from locust import FastHttpUser, between, events, task

USERS = int(os.environ.get("ADAPTIDE_LOAD_USERS", "10000"))
_SHARES = list(accumulate(1 / rank for rank in range(1, USERS + 1)))


@events.init.add_listener
def require_key(environment: Any, **_: Any) -> None:
    if not os.environ.get("ADAPTIDE_LOAD_KEY"):
        sys.exit("set ADAPTIDE_LOAD_KEY to a key: adaptide keys create --name load --scope read,write")


class Visitor(FastHttpUser):
    """Asks, looks, and sometimes clicks."""

    host = "http://127.0.0.1:8000"
    wait_time = between(0.5, 2.0)

    def on_start(self) -> None:
        self.headers = {"Authorization": f"Bearer {os.environ['ADAPTIDE_LOAD_KEY']}"}
        self.shown: dict[str, Any] | None = None
        self.user_id = ""
        self.recommend()

    @task(7)
    def recommend(self) -> None:
        self.user_id = f"load-{random.choices(range(USERS), cum_weights=_SHARES)[0]}"
        reply = self._request("POST", "/v1/recommendations", json={"user_id": self.user_id, "limit": 10})
        self.shown = reply if reply and reply["items"] else None

    @task(2)
    def tell(self) -> None:
        if self.shown is None:
            return
        sent = [self._event("impression", item) for item in self.shown["items"]]
        if random.random() < 0.3:
            sent.append(self._event("click", random.choice(self.shown["items"])))
        self._request("POST", "/v1/events", json={"events": sent})

    @task(1)
    def look(self) -> None:
        if self.shown is not None:
            item_id = self.shown["items"][0]["item_id"]
            self._request("GET", f"/v1/items/{item_id}", name="/v1/items/{item_id}")

    def _event(self, event_type: str, item: dict[str, Any]) -> dict[str, Any]:
        return {
            "event_id": str(uuid.uuid4()),
            "user_id": self.user_id,
            "item_id": item["item_id"],
            "event_type": event_type,
            "occurred_at": datetime.now(UTC).isoformat(),
            "recommendation_id": self.shown["recommendation_id"] if self.shown else None,
            "position": item["rank"],
        }

    def _request(self, method: str, path: str, **request: Any) -> dict[str, Any] | None:
        """The reply's JSON; None, and a failure in the report, for anything but 2xx."""
        with self.client.request(method, path, headers=self.headers, catch_response=True, **request) as reply:
            if not reply.ok:
                reply.failure(f"{reply.status_code}: {(reply.text or '')[:200]}")
                return None
            found: dict[str, Any] = reply.json()
            return found
