"""`adaptide demo`: the product at work on real data. The API, the base build and the updater are the real commands, in
processes of their own; everything the demo does to them goes through HTTP, as a client's calls would."""

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import orjson
from rich.console import Console

from service.cli import print_json
from service.errors import Unavailable
from service.kit.clock import utc_now
from service.settings import Settings
from trainer.datasets import Dataset, load_dataset
from trainer.demo_processes import HOST, Child, environment, free_port, own_folder, prepare_store, start_command, tail
from trainer.demo_report import Row, print_table, table_json
from trainer.demo_traffic import Traffic
from trainer.progress import bars

Result = TypeVar("Result")

BASE_SHARE = 0.6  # METHODS.md: the first 60 % by time is D_1
WINDOWS = 4
BATCH = 250
# Sizes for two cores: the base must be ready within minutes (README, "What the demo shows").
BUILD = ("--hidden", "128", "--layers", "4", "--epochs", "10")
START_TIMEOUT_S = 60.0
PERSONALISED_TIMEOUT_S = 3600.0
WINDOW_TIMEOUT_S = 3600.0


@dataclass(slots=True)
class Demo:
    """One run. `keep_serving`: go on until Ctrl-C after the last window."""

    settings: Settings
    dataset_name: str
    port: int
    keep_serving: bool
    as_json: bool
    console: Console = field(default_factory=lambda: Console(stderr=True))
    _started: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Raises DatasetError, ConfigurationError or Unavailable saying what to do."""
        with ExitStack() as stack:
            state = stack.enter_context(own_folder(self.settings.home_dir / "demo"))
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that children end with a killed demo
            try:
                self._run(stack, state)
            except KeyboardInterrupt:
                self.console.print("stopped")

    def _run(self, stack: ExitStack, state: Path) -> None:
        self._say(f"reading {self.dataset_name}")
        data = load_dataset(self.dataset_name, self.settings.home_dir)
        cuts = window_cuts(len(data.interactions))
        token = prepare_store(state)
        port = free_port(self.port)
        api = start_command(stack, state, "api", "serve", "--host", HOST, "--port", str(port))
        url = f"http://{HOST}:{port}"
        client = stack.enter_context(
            httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30)
        )
        self._wait("the API", START_TIMEOUT_S, api, lambda: _alive(client))
        self._put_items(client, data)
        self._say(f"serving popular items at {url}, {self._clock()} after the start", style="bold green")
        self._print_curl(url, token, data)
        self._post_events(client, data, 0, cuts[0], "events of D_1")

        self._say("training semantic IDs and the base on them; recommendations go on meanwhile")
        base = self._build_base(state)
        example = data.interactions.user_id[cuts[0] - 1]
        self._wait(
            "a personalised reply",
            PERSONALISED_TIMEOUT_S,
            api,
            lambda: _ask(client, example)["strategy"] == "personalised",
        )
        personalised_after = time.monotonic() - self._started
        self._say(f"personalised, {self._clock()} after the start", style="bold green")
        self._print_example(client, example)

        updater = start_command(stack, state, "updater", "trainer", "run")
        traffic = stack.enter_context(Traffic(url, token, data.interactions.user_id[cuts[0] :]))
        rows = []
        for number, (start, stop) in enumerate(itertools.pairwise(cuts), 1):
            rows.append(self._window(client, data, number, start, stop, updater))
        traffic.stop()
        memory = {"api": api.peak_mib(), "updater": updater.peak_mib()}
        self._report(rows, base, traffic, memory, personalised_after)
        if self.keep_serving:
            self._print_curl(url, token, data)
            self._say(f"still serving at {url}; Ctrl-C ends it")
            while True:
                api.require_alive()
                updater.require_alive()
                time.sleep(1)

    def _window(self, client: httpx.Client, data: Dataset, number: int, start: int, stop: int, updater: Child) -> Row:
        """Replay one window, close it and wait for its outcome."""
        self._post_events(client, data, start, stop, f"window {number}: events")
        closed = _checked(client.post("/v1/admin/windows/close")).json()
        window_id = closed["window_id"]
        begun = time.monotonic()
        steps = ["catalogue", "examples", "popularity", "evaluate_before", "fit", "evaluate_after", "gate", "publish"]
        with bars(self.console) as report:

            def concluded() -> dict[str, Any] | None:
                page = _checked(client.get("/v1/admin/windows", params={"limit": 20})).json()
                own = next(w for w in page["windows"] if w["window_id"] == window_id)
                report(f"window {number}: update", min(len(own["steps"] or []), len(steps)), len(steps))
                done = own["state"] not in ("sealed", "training") and own["finished_at"] is not None
                return own if done else None

            window = self._wait(f"window {number}", WINDOW_TIMEOUT_S, updater, concluded)
            report(f"window {number}: update", len(steps), len(steps))
        seconds = time.monotonic() - begun
        if window["verdict"] == "promoted":
            version = window["candidate_version"]
            user = data.interactions.user_id[stop - 1]
            self._wait("the swap", START_TIMEOUT_S, updater, lambda: _version(_ask(client, user)) == version)
        reason = f" ({window['reason']})" if window["reason"] else ""
        self._say(f"window {number}: {window['verdict']}{reason} after {seconds:.0f} s")
        return Row.of(number, window, seconds)

    def _build_base(self, state: Path) -> dict[str, Any]:
        """`adaptide base build` in a process of its own; its progress bars go straight to the terminal."""
        command = [sys.executable, "-m", "trainer.cli", "base", "build", *BUILD, "--json"]
        done = subprocess.run(command, env=environment(state), stdout=subprocess.PIPE, check=False)  # noqa: S603
        if done.returncode:
            raise Unavailable(f"the base build ended with status {done.returncode}; its message is above")
        built: dict[str, Any] = orjson.loads(done.stdout)
        return built

    def _wait(self, what: str, timeout_s: float, child: Child, poll: Callable[[], Result | None]) -> Result:
        """What `poll` gives once it is true. Raises Unavailable when `child` ends or the time is over."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := poll():
                return found
            child.require_alive()
            time.sleep(0.2)
        raise Unavailable(f"{what} did not come within {timeout_s:.0f} s; {tail(child.log)}")

    def _put_items(self, client: httpx.Client, data: Dataset) -> None:
        with bars(self.console) as report:
            for batch in _batches(len(data.items), 500):
                items = [
                    {
                        "item_id": item.item_id,
                        "title": item.title,
                        "description": item.description,
                        "categories": list(item.categories),
                        "brand": item.brand,
                    }
                    for item in data.items[batch.start : batch.stop]
                ]
                _checked(client.put("/v1/items", json={"items": items}))
                report("items", batch.stop, len(data.items))

    def _post_events(self, client: httpx.Client, data: Dataset, start: int, stop: int, label: str) -> None:
        with bars(self.console) as report:
            for batch in _batches(stop - start, BATCH):
                first = start + batch.start
                rows = data.interactions.rows(first, start + batch.stop)
                events = [
                    {
                        "event_id": f"{data.digest[:16]}-{number:09d}",
                        "user_id": user_id,
                        "item_id": item_id,
                        "event_type": "interaction",
                        "occurred_at": datetime.fromtimestamp(timestamp, UTC).isoformat(),
                    }
                    for number, (user_id, item_id, timestamp) in enumerate(rows, first)
                ]
                reply = _checked(client.post("/v1/events", json={"events": events})).json()
                if reply["rejected"]:
                    worst = reply["rejected"][0]
                    raise Unavailable(f"an event was refused: {worst['code']}: {worst['detail']}")
                report(label, batch.stop, stop - start)

    def _report(
        self,
        rows: list[Row],
        base: dict[str, Any],
        traffic: Traffic,
        memory: dict[str, float | None],
        personalised_after: float,
    ) -> None:
        live = {"requests": traffic.requests, "failures": traffic.failures, "versions": sorted(traffic.versions)}
        if self.as_json:
            print_json(
                table_json(rows)
                | {
                    "dataset": self.dataset_name,
                    "base_metrics": base["metrics"],
                    "personalised_after_seconds": round(personalised_after, 1),
                    "requests_during_replay": live,
                    "peak_memory_mib": memory,
                    "total_seconds": round(time.monotonic() - self._started, 1),
                }
            )
            return
        print_table(rows, Console())
        shown = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in memory.items() if mib is not None)
        self._say(
            f"{traffic.requests} recommendations were asked for during the replay, {traffic.failures} failed; "
            f"peak memory: {shown}; {self._clock()} in all"
        )

    def _print_curl(self, url: str, token: str, data: Dataset) -> None:
        user, item = data.interactions.user_id[0], data.interactions.item_id[0]
        now = utc_now().isoformat(timespec="seconds")
        event = {
            "event_id": "my-first-event",
            "user_id": "me",
            "item_id": item,
            "event_type": "click",
            "occurred_at": now,
        }
        lines = [
            f"export KEY={token}",
            f"curl -s -H \"Authorization: Bearer $KEY\" '{url}/v1/users/{user}/recommendations?limit=5'",
            f'curl -s -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" {url}/v1/recommendations '
            f"""-d '{{"history": ["{item}"], "limit": 5, "explain": true}}'""",
            f'curl -s -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" {url}/v1/events '
            f"-d '{orjson.dumps({'events': [event]}).decode()}'",
            f'curl -s -H "Authorization: Bearer $KEY" {url}/v1/admin/windows',
            f'curl -s -H "Authorization: Bearer $KEY" -X POST {url}/v1/admin/adapters/rollback',
        ]
        self.console.print("try it:", style="bold")
        for line in lines:
            self.console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)

    def _print_example(self, client: httpx.Client, user: str) -> None:
        reply = _ask(client, user)
        titles = ", ".join(f"«{item['title']}»" for item in reply["items"][:5])
        model = reply["model"]
        self.console.print(
            f"  user {user}: {titles} … by adapter {model['adapter_version']}", markup=False, highlight=False
        )

    def _say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False)

    def _clock(self) -> str:
        return f"{time.monotonic() - self._started:.0f} s"


def window_cuts(interactions: int) -> list[int]:
    """Ends of D_1 and of the four windows of equal size, as counts of interactions."""
    base = int(interactions * BASE_SHARE)
    return [base + round((interactions - base) * part / WINDOWS) for part in range(WINDOWS + 1)]


def _alive(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _ask(client: httpx.Client, user: str) -> dict[str, Any]:
    reply: dict[str, Any] = _checked(client.get(f"/v1/users/{user}/recommendations")).json()
    return reply


def _version(reply: dict[str, Any]) -> str | None:
    version: str | None = (reply["model"] or {}).get("adapter_version")
    return version


def _checked(reply: httpx.Response) -> httpx.Response:
    if reply.is_success:
        return reply
    raise Unavailable(f"{reply.request.method} {reply.request.url.path} was answered {reply.status_code}: {reply.text}")


def _batches(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
