"""Scenario 26: one account sends nine tenths of a window. It neither steers the model nor lifts an item."""

import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.adapters import service as adapters
from service.adapters.artifacts import ArtifactStore
from service.app import create_app
from service.kit.db import Database
from service.settings import Settings
from service.telemetry import REGISTRY
from service.windows.repository import Window
from tests import worlds
from tests.built import BuiltWorld
from tests.chaos.scenarios import sized
from tests.conftest import SetClock
from trainer.updater import Updater

HONEST = 6 * worlds.USERS
POISON = 9 * HONEST
PUSHED = worlds.item_id(0)
KNOWN = worlds.ITEMS - 3
UPDATE: dict[str, Any] = {
    "learning_rate_update": 1e-2,
    "update_epochs": 20,
    "update_min_steps": 0,
    "update_batch_size": 32,
    "evaluation_items_per_user": 2,
    "embedding_dropout": 0.0,
    "residual_dropout": 0.0,
    "window_max_events": HONEST + POISON,
    "threads": 1,
    "device": "cpu",
    "log_level": "WARNING",
}
SHORT = {"learning_rate_update": 5e-3, "update_epochs": 2}
"""Stopped before the model has learned to tell that account from everybody: the attack at its strongest."""
NO_CAPS = {"window_max_user_share": 1.0, "window_max_events_per_user": POISON, "window_max_repeats": POISON}


def pushing(chance: random.Random) -> list[str]:
    """Whatever was taken, the one item comes next."""
    return [worlds.item_id(1 + chance.randrange(KNOWN)) if n % 2 else PUSHED for n in range(POISON)]


def destroying(chance: random.Random) -> list[str]:
    """The order in which everybody takes items, turned round."""
    return [worlds.item_id(-n * chance.choice([1, 3]) % KNOWN) for n in range(POISON)]


def poison(items: list[str]) -> list[dict[str, Any]]:
    """Ten a second. The two new items, which are held out, come last, so that all that lies before them is trained."""
    items[-2:] = worlds.item_id(-1), worlds.item_id(-2)
    start = worlds.START + timedelta(days=1)
    return [
        worlds.event(f"poison-{n}", "mallory", item, start + timedelta(seconds=0.1 * n)) for n, item in enumerate(items)
    ]


class Shop:
    """The small world's service: what one window does to it."""

    def __init__(self, database: Database, settings: Settings, clock: SetClock) -> None:
        self.database, self.settings, self.clock = database, settings, clock
        self.artifacts = ArtifactStore(settings.artifacts_dir)
        self.shown: dict[str, Any] = {}
        """The statistics of the latest window, as an admin is shown them."""

    def active(self) -> str | None:
        return adapters.read_registry(self.database).pointer.adapter_version

    def learn(self, events: list[dict[str, Any]]) -> Window:
        """A window of these events, brought to its outcome."""
        worlds.send(self.database, self.clock, events)
        settings = self.settings.model_copy(update={"window_max_events": len(events)})
        window = Updater(self.database, settings, self.clock, self.artifacts).tick()
        assert window is not None
        return window

    def first_places(self) -> tuple[str, int]:
        """The item that a stranger is offered first, and to how many of the users the pushed one is."""
        app = create_app(self.settings, clock=self.clock)
        with TestClient(app) as client:
            key = app.state.services.access.create("tests", frozenset({Scope.ADMIN}), actor="cli")
            client.headers["Authorization"] = f"Bearer {key.token}"
            worlds.eventually(lambda: client.get("/health/ready").is_success, 60)
            stranger = client.post("/v1/recommendations", json={"user_id": "stranger", "limit": 1}).json()
            assert stranger["strategy"] == "popular"
            users = [f"u{number:02d}" for number in range(worlds.USERS)]
            self.shown = client.get("/v1/admin/windows").json()["windows"][0]["statistics"]
            asked = [client.get(f"/v1/users/{user}/recommendations?limit=1").json() for user in users]
        assert {reply["strategy"] for reply in asked} == {"personalised"}
        return stranger["items"][0]["item_id"], sum(r["items"][0]["item_id"] == PUSHED for r in asked)


@pytest.fixture
def shop(database: Database, database_url: str, clock: SetClock, built_world: BuiltWorld, tmp_path: Path) -> Shop:
    settings = Settings(**UPDATE, home=tmp_path / "home", database_url=database_url)
    built_world.copy_into(database, settings.artifacts_dir)
    return Shop(database, settings, clock)


on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the dialect plays no part


@pytest.mark.scenario(26)
@on_sqlite
@pytest.mark.parametrize("seed", range(sized(1, 10)))
@pytest.mark.parametrize("attack", [pushing, destroying])
def test_one_account_with_most_of_a_window_neither_steers_the_model_nor_lifts_an_item(
    shop: Shop, attack: Callable[[random.Random], list[str]], seed: int, figures: dict[str, Any]
) -> None:
    before, counted = shop.active(), interactions("suspected_bot")
    window, offered, pushed_to = attacked(shop, attack, seed, figures)

    statistics, found = window.statistics or {}, {e.subject: e.ndcg_10 for e in window.evaluations}
    assert statistics["capped_users"] == statistics["suspected_bots"] == 1
    assert statistics["suspected_bot_share"] == 0.9
    assert shop.shown == statistics
    assert interactions("suspected_bot") - counted == POISON
    assert figures["share_of_training"] <= shop.settings.window_max_user_share
    assert offered != PUSHED
    if attack is pushing:
        assert pushed_to <= 0.2 * worlds.USERS
    if window.verdict == "promoted":
        assert found["candidate"] > found["incumbent"]
    else:
        assert shop.active() == before


@pytest.mark.scenario(26)
@on_sqlite
@pytest.mark.parametrize("capped", [True, False])
def test_without_the_caps_the_same_account_would_steer_the_model(
    shop: Shop, figures: dict[str, Any], capped: bool
) -> None:
    """So what the test above sees is what the caps do."""
    shop.settings = shop.settings.model_copy(update=SHORT if capped else SHORT | NO_CAPS)
    _, _, pushed_to = attacked(shop, pushing, 0, figures)
    if capped:
        assert pushed_to <= 0.2 * worlds.USERS
    else:
        assert figures["share_of_training"] > 0.9
        assert pushed_to > 0.3 * worlds.USERS


def interactions(kind: str) -> float:
    """As the updater's metrics have it."""
    return REGISTRY.get_sample_value("adaptide_window_interactions_total", {"kind": kind}) or 0.0


def attacked(
    shop: Shop, attack: Callable[[random.Random], list[str]], seed: int, figures: dict[str, Any]
) -> tuple[Window, str, int]:
    """The window, the item that a stranger is then offered, to how many users the pushed one is offered first."""
    window = shop.learn(worlds.later_walks() + poison(attack(random.Random(seed))))
    offered, pushed_to = shop.first_places()
    assert window.statistics is not None
    honest = 4 * worlds.USERS  # of each user's six, one is the validation and one the test
    figures |= {
        "share_of_events": round(POISON / (HONEST + POISON), 3),
        "share_of_training": round(1 - honest / window.statistics["targets"], 3),
        "verdict": window.verdict,
        "pushed_first_to": pushed_to,
        "of_users": worlds.USERS,
    }
    figures |= {f"ndcg10_{evaluation.subject}": round(evaluation.ndcg_10, 3) for evaluation in window.evaluations}
    return window, offered, pushed_to
