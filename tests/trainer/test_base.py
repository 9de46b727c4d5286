"""Everything that is stored becomes a base: tokenizer, backbone and first adapter, published and in force."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.adapters import repository as adapter_rows
from service.adapters import service as adapters
from service.adapters.artifacts import ArtifactStore
from service.adapters.states import AdapterState
from service.catalog import repository as catalog_rows
from service.catalog import service as catalog
from service.catalog.follower import CatalogueFollower
from service.catalog.repository import StoredItem
from service.catalog.semantic_ids import load_codec
from service.errors import CatalogueError, DatasetError, InvalidRequest
from service.kit.db import Database
from service.settings import Settings
from service.windows import service as windows
from service.windows.states import SealedBecause, WindowState
from tests import worlds
from tests.conftest import SetClock
from trainer.base import BuiltBase, build_base
from trainer.examples import UserStream, build_examples
from trainer.language_base import LanguageRecipe, TrainMode
from trainer.progress import Report, silent
from trainer.recipe import BaseRecipe, make_recipe
from trainer.tiny import TinyConfig, whole_sequences
from trainer.tokenizer.fit import Quantiser, TextEncoderKind, TokenizerConfig

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the dialect plays no part

NOBODY = np.empty(0, dtype=np.int64)
"""What a user did before."""
QUICK = BaseRecipe(
    tiny=TinyConfig(hidden=32, layers=1, heads=1),
    tokenizer=TokenizerConfig(quantiser=Quantiser.RQKMEANS),
    epochs=1,
)


class Shop:
    """A store with a home, in which bases are built."""

    def __init__(self, database: Database, clock: SetClock, home: Path) -> None:
        self.database, self.clock = database, clock
        self.settings = Settings(home=home)
        self.artifacts = ArtifactStore(self.settings.artifacts_dir)

    def stock(self) -> None:
        worlds.put(self.database, self.clock, worlds.items())

    def send(self, events: list[dict[str, Any]]) -> None:
        worlds.send(self.database, self.clock, events)

    def build(self, recipe: BaseRecipe = QUICK, report: Report = silent) -> BuiltBase:
        return build_base(
            self.database, self.artifacts, self.settings, self.clock, recipe, actor="tests", report=report
        )

    def items(self) -> dict[str, StoredItem]:
        with self.database.read() as connection:
            return {item.item_id: item for item in catalog_rows.changed_since(connection, 0)}

    def windows(self) -> list[tuple[WindowState, SealedBecause, int]]:
        """State, cause and size of each, oldest first."""
        page = windows.read_page(self.database, self.settings, limit=100, before=None)
        return [(w.state, w.sealed_because, w.events) for w in reversed(page.windows)]

    def waiting(self) -> int:
        """Events in the open window."""
        return windows.read_page(self.database, self.settings, limit=1, before=None).open.events

    def published(self) -> list[str]:
        return sorted(path.name for path in self.artifacts.root.glob("*/*"))


@pytest.fixture
def shop(database: Database, clock: SetClock, tmp_path: Path) -> Shop:
    return Shop(database, clock, tmp_path / "home")


def once(during: str, action: Callable[[], object]) -> Report:
    """A Report that runs `action` the first time that step `during` shows itself."""
    left = [action]

    def report(step: str, done: int, total: int) -> None:
        if step == during and left:
            left.pop()()

    return report


def test_a_base_serves_with_an_adapter_that_changes_nothing(shop: Shop) -> None:
    shop.stock()
    shop.send(worlds.first_walks())
    made = shop.build()

    pointer = adapters.read_registry(shop.database).pointer
    assert (pointer.revision, pointer.base_id, pointer.adapter_version) == (1, made.base_id, made.adapter_version)
    assert made.revision == 1
    adapter = adapters.read_adapter(shop.database, made.adapter_version).adapter
    assert (adapter.state, adapter.method, adapter.window_id) == (AdapterState.ACTIVE, "fresh", None)
    with shop.database.read() as connection:
        row = adapter_rows.find_base(connection, made.base_id)
    assert row is not None
    newest = worlds.START + timedelta(minutes=11, seconds=59)
    assert (adapter.trained_through, row.trained_through) == (newest, newest)

    base = shop.artifacts.open_base(made.base_id, row.digest)
    opened = shop.artifacts.open_adapter(made.adapter_version, adapter.digest, base)
    assert all(not tensor.any() for name, tensor in opened.tensors.items() if "lora_B" in name)
    assert len(opened.tensors) == 2 * 7
    assert (base.metadata["backbone"], base.metadata["quantiser"]) == ("tiny", "rqkmeans")
    assert shop.published() == sorted([made.base_id, made.adapter_version])


def test_what_it_was_trained_on_is_a_window_that_needs_no_update(shop: Shop) -> None:
    shop.stock()
    shop.send(worlds.first_walks())
    shop.build()
    assert shop.windows() == [(WindowState.BASE, SealedBecause.BASE, 12 * worlds.USERS)]
    assert shop.waiting() == 0


def test_every_item_gets_its_own_codes_also_hidden_ones_and_ones_without_events(shop: Shop) -> None:
    shop.stock()
    shop.send(worlds.first_walks())
    worlds.put(
        shop.database,
        shop.clock,
        [
            {"item_id": "new", "title": "golden kettle"},
            {"item_id": "hidden", "title": "golden lamp", "available": False},
            {"item_id": "gone", "title": "golden chair"},
            {"item_id": "wordless", "title": "!"},
        ],
    )
    catalog.delete_item(shop.database, shop.clock, "gone")
    made = shop.build()
    items = shop.items()
    assert {item.base_id for item in items.values()} == {made.base_id}
    assert len({item.codes for item in items.values()}) == len(items) == worlds.ITEMS + 4
    trie = CatalogueFollower(shop.database, shop.settings.poll_interval).refresh().trie
    assert trie.leaves == worlds.ITEMS + 2  # hidden and gone are known, and never recommended


@on_sqlite
def test_the_codes_are_those_of_the_published_codec(shop: Shop) -> None:
    shop.stock()
    shop.send(worlds.first_walks())
    made = shop.build()
    codec = load_codec(shop.artifacts.root / "bases" / made.base_id / "codec")
    items = [item for _, item in sorted(shop.items().items())]
    texts = [catalog.item_text(item.title, item.categories, item.brand, item.description) for item in items]
    assert codec.assign(texts, ()) == [item.codes for item in items]


@on_sqlite
def test_the_build_says_how_long_each_step_took_and_how_good_the_base_is(shop: Shop) -> None:
    shop.stock()
    shop.send(worlds.first_walks())
    seen: set[str] = set()
    made = shop.build(report=lambda step, done, total: seen.add(step))
    assert [row["step"] for row in made.steps] == [
        "load",
        "tokenizer",
        "examples",
        "fit",
        "evaluate",
        "publish",
        "activate",
    ]
    examples, fit = made.steps[2], made.steps[3]
    assert (examples["users"], examples["events"], examples["targets"]) == (60, 720, 10 * 60)
    assert len(fit["losses"]) == 1
    assert seen == {"base"}
    assert made.metrics["users"] == 60
    for name in ("base", "popularity"):
        assert made.metrics[name].keys() == {"hit@5", "hit@10", "ndcg@5", "ndcg@10"}


@on_sqlite
def test_an_rq_vae_makes_codes_too(shop: Shop) -> None:
    shop.stock()
    shop.send(worlds.first_walks())
    tokenizer = TokenizerConfig(quantiser=Quantiser.RQVAE, hidden=(32,), latent=8, steps=20)
    seen: list[int] = []
    shop.build(
        BaseRecipe(QUICK.tiny, tokenizer, epochs=1),
        lambda step, done, total: seen.append(done) if (step, total) == ("semantic IDs", 20) else None,
    )
    assert seen == list(range(1, 21))
    assert len({item.codes for item in shop.items().values()}) == worlds.ITEMS


@pytest.mark.parametrize("length", [0, 4])
def test_too_little_to_learn_from_is_refused_and_nothing_is_published(shop: Shop, length: int) -> None:
    shop.stock()
    shop.send(list(worlds.walks("short", length=length, step=1)))
    before = worlds.row_counts(shop.database)
    with pytest.raises((DatasetError, CatalogueError), match="import items and"):
        shop.build()
    assert shop.published() == []
    assert worlds.row_counts(shop.database) == before
    assert adapters.read_registry(shop.database).pointer.revision == 0


@pytest.mark.parametrize("loud", [0, 20])
def test_a_user_who_did_more_than_counts_keeps_the_latest_to_itself(loud: int) -> None:
    streams = [UserStream(f"u{user:02d}", NOBODY, 1000 + 7 * user + np.arange(7)) for user in range(40)]
    streams.insert(loud, UserStream("loud", NOBODY, np.arange(300)))

    examples = build_examples(streams, history_items=20, min_events=5, user_share=0.1)

    learnt = [rows.tolist() for rows in whole_sequences(examples)]
    share = len(learnt[loud])
    assert learnt.pop(loud) == list(range(298 - share, 298))
    assert share == 22  # 22 of 222 are no more than a tenth, 23 of 223 are
    assert learnt == [list(range(1000 + 7 * user, 1005 + 7 * user)) for user in range(40)]


@on_sqlite
@pytest.mark.parametrize("loud", ["a", "u20x"])  # the first of all users and one between the others
def test_a_base_is_built_of_users_of_whom_one_did_far_more_than_the_others(shop: Shop, loud: str) -> None:
    shop.stock()
    shop.send(list(worlds.walks("quiet", users=40, length=7, step=1)))
    shop.send([event | {"user_id": loud} for event in worlds.walks("loud", users=1, length=300, step=1)])

    made = shop.build()

    assert made.steps[2]["users"] == 41
    assert made.steps[2]["targets"] == 40 * 5 + 22  # of the 38 that the loud one had before its validation item
    assert adapters.read_registry(shop.database).pointer.base_id == made.base_id


def test_events_without_items_are_refused(shop: Shop) -> None:
    shop.send(worlds.first_walks())
    with pytest.raises(CatalogueError, match="import items"):
        shop.build()


def test_what_arrives_during_the_build_waits_for_the_next_window_and_gets_codes_later(shop: Shop) -> None:
    def arrive() -> None:
        shop.send(worlds.later_walks())
        worlds.put(shop.database, shop.clock, [{"item_id": "newborn", "title": "red kettle"}])

    shop.stock()
    shop.send(worlds.first_walks())
    shop.build(report=once("base", arrive))
    assert shop.windows() == [(WindowState.BASE, SealedBecause.BASE, 720)]
    assert shop.waiting() == 360
    assert shop.items()["newborn"].codes is None


def test_a_second_base_takes_over_and_the_windows_it_learnt_from_are_skipped(shop: Shop) -> None:
    shop.stock()
    shop.send(worlds.first_walks())
    first = shop.build()
    shop.send(worlds.later_walks())
    windows.seal(shop.database, shop.clock, shop.settings, SealedBecause.MANUAL)
    shop.send(worlds.later_walks(2))
    second = shop.build()
    assert second.base_id != first.base_id
    assert shop.windows() == [
        (WindowState.BASE, SealedBecause.BASE, 720),
        (WindowState.SKIPPED, SealedBecause.MANUAL, 360),
        (WindowState.BASE, SealedBecause.BASE, 360),
    ]
    pointer = adapters.read_registry(shop.database).pointer
    assert (pointer.base_id, pointer.adapter_version) == (second.base_id, second.adapter_version)
    assert adapters.read_adapter(shop.database, first.adapter_version).adapter.state is AdapterState.RETIRED
    assert {item.base_id for item in shop.items().values()} == {second.base_id}


def test_building_again_from_the_same_is_the_same_base(shop: Shop) -> None:
    shop.stock()
    shop.send(worlds.first_walks())
    first, second = shop.build(), shop.build()
    assert (second.base_id, second.adapter_version) == (first.base_id, first.adapter_version)
    assert shop.published() == sorted([first.base_id, first.adapter_version])
    assert adapters.read_adapter(shop.database, first.adapter_version).adapter.state is AdapterState.ACTIVE


def test_a_recipe_is_made_from_what_a_command_was_given() -> None:
    recipe = make_recipe("tiny", hidden=64, layers=2, epochs=3, quantiser="rqkmeans", text_encoder="tfidf")
    assert recipe.tiny == TinyConfig(hidden=64, layers=2, heads=2)
    assert recipe.tokenizer == TokenizerConfig(Quantiser.RQKMEANS, TextEncoderKind.TFIDF)
    assert (recipe.epochs, recipe.language) == (3, None)


def test_a_language_models_recipe_has_the_papers_settings_where_nothing_is_said() -> None:
    given = {"hidden": 64, "layers": 2, "quantiser": "rqvae", "text_encoder": "tfidf"}
    assert make_recipe("smollm2", epochs=0, **given).language == LanguageRecipe("smollm2", TrainMode.LORA, 4, 32, 0.01)
    chosen = make_recipe("smollm2", epochs=2, train="full", learning_rate=1e-4, **given).language
    assert chosen == LanguageRecipe("smollm2", TrainMode.FULL, 2, 32, 0.01, 1e-4)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"train": "half"}, "lora, full"),
        ({"hidden": 48}, "multiple of 32"),
        ({"quantiser": "pq"}, "rqkmeans"),
        ({"text_encoder": "bert"}, "minilm"),
    ],
)
def test_an_impossible_recipe_is_refused_naming_what_is_possible(given: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        make_recipe(
            "tiny", **{"hidden": 64, "layers": 2, "epochs": 3, "quantiser": "rqvae", "text_encoder": "tfidf"} | given
        )
