"""A new item has its codes as soon as it is stored, whichever way it came in, and only those of the base in force."""

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.adapters.artifacts import ArtifactStore
from service.catalog import service as catalog
from service.catalog.encoding import CodecFollower
from service.catalog.repository import StoredItem, changed_since
from service.catalog.schemas import Item
from service.catalog.semantic_ids import Codec, load_codec
from service.catalog.tables import catalog_revision
from service.errors import ArtifactError
from service.kit.db import Database
from service.settings import Settings
from tests import worlds
from tests.built import RECIPE, BuiltWorld
from tests.conftest import SetClock
from trainer.base import BuiltBase, build_base
from trainer.recipe import BaseRecipe
from trainer.tokenizer.fit import Quantiser, TokenizerConfig


class Following:
    """A codec follower over the test's store and home that counts what it opens."""

    def __init__(self, database: Database, artifacts: Path) -> None:
        self.database, self.opened, self.broken = database, list[str](), False
        self._artifacts, self.now = artifacts, 0.0
        self.follower = CodecFollower(database, timedelta(hours=1), self._open, lambda: self.now)

    def _open(self, base_id: str) -> Codec:
        if self.broken:
            raise ArtifactError("the folder is away")
        self.opened.append(base_id)
        return load_codec(self._artifacts / "bases" / base_id / "codec")

    def active_base(self) -> str | None:
        active = self.follower.active()
        return None if active is None else active.base_id

    def item(self, item_id: str) -> StoredItem:
        with self.database.read() as connection:
            return {item.item_id: item for item in changed_since(connection, 0)}[item_id]

    def revision(self) -> int:
        with self.database.read() as connection:
            return connection.scalar(sa.select(catalog_revision.c.revision)) or 0


@pytest.fixture
def following(database: Database, settings: Settings) -> Following:
    return Following(database, settings.artifacts_dir)


@pytest.fixture
def built(built_world: BuiltWorld, database: Database, settings: Settings) -> BuiltBase:
    return built_world.copy_into(database, settings.artifacts_dir)


def test_without_a_base_there_is_no_codec_and_items_wait(following: Following, clock: SetClock) -> None:
    worlds.put(following.database, clock, worlds.items(range(2)))
    following.follower.refresh()
    assert following.follower.active() is None
    assert following.item("i00").codes is None


def test_the_codec_of_the_active_base_is_opened_once(following: Following, built: BuiltBase) -> None:
    for _ in range(3):
        following.follower.refresh()
    assert (following.opened, following.active_base()) == ([built.base_id], built.base_id)


def test_a_codec_that_cannot_be_opened_is_tried_again_ever_more_rarely(following: Following, built: BuiltBase) -> None:
    """Each attempt reads a whole base."""
    following.broken = True
    failed = []
    for second in range(40):
        following.now = float(second)
        try:
            following.follower.refresh()
        except ArtifactError:
            failed.append(second)
    assert failed == [0, 2, 6, 14, 30]
    assert following.follower.active() is None
    following.broken, following.now = False, 100.0
    following.follower.refresh()
    assert following.active_base() == built.base_id


def test_a_new_item_gets_its_codes_in_the_transaction_that_stores_it(
    following: Following, built: BuiltBase, clock: SetClock
) -> None:
    following.follower.refresh()
    before = following.revision()
    new = Item(item_id="new", title="golden kettle")
    catalog.put_items(following.database, clock, [new], following.follower.active())
    item = following.item("new")
    assert (item.base_id, item.revision, following.revision()) == (built.base_id, before + 1, before + 1)
    assert item.codes is not None


def test_imported_items_are_encoded_in_the_background_and_only_once(
    following: Following, built: BuiltBase, clock: SetClock
) -> None:
    worlds.put(following.database, clock, [{"item_id": "new", "title": "golden kettle"}])
    assert following.item("new").codes is None
    following.follower.refresh()
    codes, revision = following.item("new").codes, following.revision()
    assert codes is not None
    following.follower.refresh()
    assert (following.item("new").codes, following.revision()) == (codes, revision)


def test_two_items_of_the_same_words_get_codes_of_their_own(
    following: Following, built: BuiltBase, clock: SetClock
) -> None:
    worlds.put(following.database, clock, [{"item_id": name, "title": "red kettle"} for name in ("x", "y")])
    following.follower.refresh()
    codes = [following.item(name).codes for name in ("i00", "x", "y")]
    assert len(set(codes)) == 3
    assert len({own[:3] for own in codes if own is not None}) == 1  # spread over the last level only


def test_another_base_encodes_everything_anew_with_its_own_codec(
    following: Following, built: BuiltBase, settings: Settings, clock: SetClock
) -> None:
    following.follower.refresh()
    worlds.send(following.database, clock, worlds.later_walks())
    tokenizer = TokenizerConfig(quantiser=Quantiser.RQKMEANS, dimensions=4)
    artifacts = ArtifactStore(settings.artifacts_dir)
    recipe = BaseRecipe(RECIPE.tiny, tokenizer, epochs=1)
    second = build_base(following.database, artifacts, settings, clock, recipe, actor="tests")
    # A replica that has not noticed yet holds the first base's codec: its codes would be wrong.
    late = Item(item_id="late", title="golden kettle")
    catalog.put_items(following.database, clock, [late], following.follower.active())
    assert following.item("late").codes is None
    following.follower.refresh()
    assert following.active_base() == second.base_id
    assert following.item("late").base_id == following.item("i00").base_id == second.base_id


def test_the_api_encodes_what_is_put_and_shows_it(built: BuiltBase, app: FastAPI, admin: TestClient) -> None:
    worlds.eventually(lambda: app.state.services.codec() is not None)
    admin.put("/v1/items", json={"items": [{"item_id": "new", "title": "golden kettle"}]})
    shown = admin.get("/v1/items/new").json()
    assert len(shown["codes"]) == 4
    assert shown["base_id"] == built.base_id
