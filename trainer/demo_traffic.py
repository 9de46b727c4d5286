"""Recommendation requests that go on while windows are replayed: a swap that disturbed anybody would be seen."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import httpx
import numpy as np

PAUSE_S = 0.1


class Traffic:
    """Asks for one random user at a time until stopped. `versions`: every adapter version that answered."""

    def __init__(self, url: str, token: str, users: Sequence[str]) -> None:
        self.requests, self.failures = 0, 0
        self.versions: set[str] = set()
        self._url, self._token, self._users = url, token, users
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-traffic", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        random = np.random.default_rng(0)
        headers = {"Authorization": f"Bearer {self._token}"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=10) as client:
            while not self._ended.wait(PAUSE_S):
                user = self._users[int(random.integers(len(self._users)))]
                self.requests += 1
                try:
                    reply = client.get(f"/v1/users/{user}/recommendations")
                except httpx.TransportError:
                    self.failures += 1
                    continue
                if reply.is_success:
                    model = reply.json()["model"]
                    if model and model["adapter_version"]:
                        self.versions.add(model["adapter_version"])
                else:
                    self.failures += 1
