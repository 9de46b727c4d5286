"""The catalogue against both stores, and over HTTP."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.adapters.tables import active_adapter, bases
from service.catalog import repository
from service.catalog.repository import Codes
from service.catalog.schemas import Item
from service.catalog.semantic_ids import Float32
from service.catalog.service import (
    PIECE,
    ActiveCodec,
    delete_item,
    encode_missing,
    get_item,
    item_text,
    put_items,
)
from service.errors import InvalidRequest, NotFound, StoreUnavailable
from service.kit.db import Database
from tests.conftest import SetClock


class FirstLetterCodec:
    """A codec small enough to check by hand: (first letter, length, 0, first free number).

    meanwhile: what happens while texts are encoded, once.
    """

    def __init__(self, *, instant: bool = True, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.instant, self._meanwhile = instant, meanwhile

    def latent(self, texts: Sequence[str]) -> Float32:
        meanwhile, self._meanwhile = self._meanwhile, lambda: None
        meanwhile()
        return np.array([(ord(text[0]) % 256, len(text) % 256) for text in texts], dtype=np.float32)

    def assign(self, texts: Sequence[str], taken: Iterable[Codes]) -> list[Codes]:
        return self.place(self.latent(texts), taken)

    def place(self, latent: Float32, taken: Iterable[Codes]) -> list[Codes]:
        used, result = set(taken), list[Codes]()
        for letter, length in latent.astype(int).tolist():
            prefix = (letter, length, 0)
            code = next(n for n in range(256) if (*prefix, n) not in used)
            used.add((*prefix, code))
            result.append((*prefix, code))
        return result


def activate(database: Database, clock: SetClock, base_id: str, codec: FirstLetterCodec | None = None) -> ActiveCodec:
    with database.write() as connection:
        connection.execute(bases.insert().values(base_id=base_id, digest="d", created_at=clock(), metrics={}))
        connection.execute(active_adapter.update().values(base_id=base_id))
    return ActiveCodec(base_id, codec or FirstLetterCodec())


def codes_of(database: Database, item_id: str) -> tuple[str | None, Codes | None]:
    item = get_item(database, item_id)
    return item.base_id, item.codes


def test_the_text_of_an_item_leaves_empty_parts_out() -> None:
    assert item_text("Toy Story", ["Animation", "Comedy"], "Pixar", "A film") == (
        "Toy Story. Animation, Comedy. Pixar. A film"
    )
    assert item_text(" Toy Story ", [], None, " ") == "Toy Story"


def test_an_item_is_created_then_unchanged_then_updated(database: Database, clock: SetClock) -> None:
    item = Item(item_id="i", title="One", categories=["a", "b"], brand="x", description="d")
    first = put_items(database, clock, [item])
    assert (first.created, first.updated, first.unchanged, first.catalog_revision) == (1, 0, 0, 1)
    clock.advance(minutes=1)
    again = put_items(database, clock, [item])
    assert (again.created, again.updated, again.unchanged, again.catalog_revision) == (0, 0, 1, 1)
    later = put_items(database, clock, [Item(item_id="i", title="Two")])
    assert (later.created, later.updated, later.unchanged, later.catalog_revision) == (0, 1, 0, 2)
    view = get_item(database, "i")
    assert (view.title, view.categories, view.brand, view.description) == ("Two", [], None, None)
    assert (view.updated_at - view.created_at).total_seconds() == 60


def test_a_deleted_item_is_hidden_and_a_put_brings_it_back(database: Database, clock: SetClock) -> None:
    put_items(database, clock, [Item(item_id="i", title="One")])
    delete_item(database, clock, "i")
    with pytest.raises(NotFound):
        get_item(database, "i")
    with pytest.raises(NotFound):
        delete_item(database, clock, "i")
    with database.read() as connection:
        [hidden] = repository.changed_since(connection, 1)
        assert (hidden.servable, repository.count(connection)) == (False, 0)
        assert repository.current_revision(connection) == 2  # the refused delete took no revision
    assert put_items(database, clock, [Item(item_id="i", title="One")]).created == 1
    assert get_item(database, "i").revision == 3


def test_an_id_twice_in_a_request_is_refused_and_nothing_is_written(database: Database, clock: SetClock) -> None:
    twice = [Item(item_id="i", title="One"), Item(item_id="j", title="J"), Item(item_id="i", title="Two")]
    with pytest.raises(InvalidRequest) as refused:
        put_items(database, clock, twice)
    assert [(e.pointer, e.code) for e in refused.value.errors] == [("/items/2/item_id", "repeated")]
    with database.read() as connection:
        assert repository.count(connection) == 0


def test_items_get_the_active_bases_codes_in_the_same_transaction(database: Database, clock: SetClock) -> None:
    active = activate(database, clock, "b-1")
    put_items(database, clock, [Item(item_id="i", title="ab"), Item(item_id="j", title="ab")], active)
    put_items(database, clock, [Item(item_id="k", title="ab")], active)
    assert codes_of(database, "i") == ("b-1", (97, 2, 0, 0))
    assert codes_of(database, "j") == ("b-1", (97, 2, 0, 1))
    assert codes_of(database, "k") == ("b-1", (97, 2, 0, 2))


def test_a_put_encodes_its_own_items_and_leaves_others_to_the_background(database: Database, clock: SetClock) -> None:
    put_items(database, clock, [Item(item_id="imported", title="ab")])
    active = activate(database, clock, "b-1")
    put_items(database, clock, [Item(item_id="put", title="ab")], active)
    assert codes_of(database, "imported") == (None, None)
    assert codes_of(database, "put") == ("b-1", (97, 2, 0, 0))
    assert encode_missing(database, active) == 1
    assert codes_of(database, "imported") == ("b-1", (97, 2, 0, 1))


def test_taken_codes_are_those_of_the_base_and_of_the_prefixes_asked_for(database: Database, clock: SetClock) -> None:
    active = activate(database, clock, "b-1")
    put_items(database, clock, [Item(item_id=t, title=t) for t in ("ab", "ac", "b", "cd")], active)
    with database.read() as connection:
        of_all = {(97, 2, 0, 0), (97, 2, 0, 1), (98, 1, 0, 0), (99, 2, 0, 0)}
        assert repository.taken_codes(connection, "b-1") == of_all
        asked = {(97, 2, 0), (98, 1, 0), (98, 2, 0)}
        assert repository.taken_codes(connection, "b-1", asked) == of_all - {(99, 2, 0, 0)}
        assert repository.taken_codes(connection, "b-1", ()) == set()
        assert repository.taken_codes(connection, "b-2", asked) == set()


def test_an_item_keeps_its_codes_when_its_text_changes_or_it_was_deleted(database: Database, clock: SetClock) -> None:
    active = activate(database, clock, "b-1")
    put_items(database, clock, [Item(item_id="i", title="ab")], active)
    put_items(database, clock, [Item(item_id="i", title="something else")], active)
    delete_item(database, clock, "i")
    put_items(database, clock, [Item(item_id="i", title="third")], active)
    assert codes_of(database, "i") == ("b-1", (97, 2, 0, 0))


def test_without_a_base_items_wait_for_their_codes(database: Database, clock: SetClock) -> None:
    put_items(database, clock, [Item(item_id="i", title="ab"), Item(item_id="j", title="c")])
    assert codes_of(database, "i") == (None, None)
    active = activate(database, clock, "b-1")
    assert encode_missing(database, active) == 2
    assert encode_missing(database, active) == 0
    assert codes_of(database, "i") == ("b-1", (97, 2, 0, 0))
    with database.read() as connection:
        assert [item.item_id for item in repository.changed_since(connection, 1)] == ["i", "j"]


def test_a_replica_with_an_old_bases_codec_leaves_the_codes_to_others(database: Database, clock: SetClock) -> None:
    old = activate(database, clock, "b-1")
    activate(database, clock, "b-2")
    put_items(database, clock, [Item(item_id="i", title="ab")], old)
    assert codes_of(database, "i") == (None, None)
    assert encode_missing(database, old) == 0


def test_a_codec_that_takes_a_while_encodes_later_a_piece_at_a_time(database: Database, clock: SetClock) -> None:
    active = activate(database, clock, "b-1", FirstLetterCodec(instant=False))
    put_items(database, clock, [Item(item_id=f"i{n:03d}", title="ab") for n in range(PIECE + 2)], active)
    assert codes_of(database, "i000") == (None, None)
    assert [encode_missing(database, active) for _ in range(3)] == [PIECE, 2, 0]
    assert codes_of(database, "i000") == ("b-1", (97, 2, 0, 0))
    assert codes_of(database, f"i{PIECE + 1:03d}") == ("b-1", (97, 2, 0, PIECE + 1))


def test_what_changes_while_it_is_encoded_is_encoded_again(database: Database, clock: SetClock) -> None:
    def change() -> None:  # nobody may have to wait for the codec: a transaction around it would stop this one
        put_items(database, clock, [Item(item_id="i", title="other")])

    active = activate(database, clock, "b-1", FirstLetterCodec(instant=False, meanwhile=change))
    put_items(database, clock, [Item(item_id="i", title="ab"), Item(item_id="j", title="c")], active)
    assert [encode_missing(database, active) for _ in range(3)] == [1, 1, 0]
    assert codes_of(database, "i") == ("b-1", (111, 5, 0, 0))


def test_what_another_replica_encoded_meanwhile_keeps_its_codes(database: Database, clock: SetClock) -> None:
    quick = activate(database, clock, "b-1")
    slow = ActiveCodec("b-1", FirstLetterCodec(instant=False, meanwhile=lambda: encode_missing(database, quick)))
    put_items(database, clock, [Item(item_id="i", title="ab")])
    assert encode_missing(database, slow) == 0
    assert codes_of(database, "i") == ("b-1", (97, 2, 0, 0))


@pytest.mark.parametrize("instant", [False, True])
def test_a_base_that_takes_over_while_items_are_encoded_gets_no_foreign_codes(
    database: Database, clock: SetClock, instant: bool
) -> None:
    late = FirstLetterCodec(instant=instant, meanwhile=lambda: activate(database, clock, "b-2"))
    active = activate(database, clock, "b-1", late)
    put_items(database, clock, [Item(item_id="i", title="ab")])
    assert encode_missing(database, active) == 0
    assert codes_of(database, "i") == (None, None)


def test_who_waits_for_the_catalogue_while_a_base_takes_over_writes_no_foreign_codes(
    database: Database, clock: SetClock
) -> None:
    old = activate(database, clock, "b-1")
    put_items(database, clock, [Item(item_id="i", title="ab")])
    with ThreadPoolExecutor(1) as pool:
        with database.write() as connection:
            repository.lock_revision(connection)
            encoding = pool.submit(encode_missing, database, old)
            time.sleep(0.5)  # it has seen the base before, and waits
            connection.execute(bases.insert().values(base_id="b-2", digest="d", created_at=clock(), metrics={}))
            connection.execute(active_adapter.update().values(base_id="b-2"))
        assert encoding.result() == 0
    assert codes_of(database, "i") == (None, None)


def test_even_an_instant_codec_encodes_a_piece_at_a_time(
    database: Database, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.catalog.service.INSTANT_PIECE", 3)
    put_items(database, clock, [Item(item_id=f"i{n}", title="ab") for n in range(5)])
    active = activate(database, clock, "b-1")
    assert [encode_missing(database, active) for _ in range(3)] == [3, 2, 0]
    assert codes_of(database, "i4") == ("b-1", (97, 2, 0, 4))


def test_a_new_base_encodes_every_item_anew_deleted_ones_too(database: Database, clock: SetClock) -> None:
    active = activate(database, clock, "b-1")
    put_items(database, clock, [Item(item_id="i", title="ab"), Item(item_id="j", title="x")], active)
    delete_item(database, clock, "j")
    again = activate(database, clock, "b-2")
    assert [encode_missing(database, again) for _ in range(2)] == [2, 0]
    assert codes_of(database, "i")[0] == "b-2"


def test_followers_read_whole_revisions_page_by_page(database: Database, clock: SetClock) -> None:
    put_items(database, clock, [Item(item_id=f"a{n}", title="t") for n in range(5)])
    put_items(database, clock, [Item(item_id="b", title="t")])
    read, revision = [], 0
    with database.read() as connection:
        while page := repository.changed_since(connection, revision, 2):
            read.append([item.item_id for item in page])
            revision = page[-1].revision
    assert read == [["a0", "a1", "a2", "a3", "a4"], ["b"]]


def test_many_items_are_put_and_found_at_once(database: Database, clock: SetClock) -> None:
    report = put_items(database, clock, [Item(item_id=f"i{n}", title=f"t{n}") for n in range(12_000)])
    assert report.created == 12_000
    with database.read() as connection:
        assert len(repository.by_ids(connection, [f"i{n}" for n in range(20_000)])) == 12_000
        assert repository.known(connection, ["i1", "nope"]) == {"i1"}


# --- over HTTP ---


def put(client: TestClient, *items: Any) -> Any:
    return client.put("/v1/items", json={"items": items})


@pytest.mark.parametrize("item_id", ["i", "a/b", "Zoë 😀", "50%"])
def test_an_item_is_put_read_and_deleted_over_http(admin: TestClient, item_id: str) -> None:
    path = "/v1/items/" + quote(item_id, safe="")
    assert put(admin, {"item_id": item_id, "title": "T", "categories": ["c"]}).json() == {
        "created": 1,
        "updated": 0,
        "unchanged": 0,
        "catalog_revision": 1,
    }
    body = admin.get(path).json()
    assert (body["item_id"], body["title"], body["categories"], body["codes"]) == (item_id, "T", ["c"], None)
    assert admin.delete(path).status_code == 204
    gone = admin.get(path)
    assert (gone.status_code, gone.json()["slug"]) == (404, "not_found")
    assert admin.delete(path).status_code == 404


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"item_id": ""}, "/items/1/item_id"),
        ({"item_id": "a\x00"}, "/items/1/item_id"),
        ({"title": ""}, "/items/1/title"),
        ({"title": "\x00"}, "/items/1/title"),
        ({"title": None}, "/items/1/title"),
        ({"title": "x" * 1001}, "/items/1/title"),
        ({"description": "x" * 20_001}, "/items/1/description"),
        ({"categories": "drama"}, "/items/1/categories"),
        ({"categories": ["ok", ""]}, "/items/1/categories/1"),
        ({"categories": ["c"] * 51}, "/items/1/categories"),
        ({"brand": "x" * 301}, "/items/1/brand"),
        ({"available": "yes"}, "/items/1/available"),
        ({"colour": "red"}, "/items/1/colour"),
        ({"item_id": "good"}, "/items/1/item_id"),
    ],
)
def test_one_wrong_item_refuses_the_request_and_is_named(
    admin: TestClient, change: dict[str, Any], pointer: str
) -> None:
    reply = put(admin, {"item_id": "good", "title": "T"}, {"item_id": "j", "title": "T"} | change)
    assert reply.status_code == 422
    assert [e["pointer"] for e in reply.json()["errors"]] == [pointer]
    assert admin.get("/v1/items/good").status_code == 404


@pytest.mark.parametrize("items", [[], [{"item_id": f"i{n}", "title": "T"} for n in range(501)]])
def test_one_to_five_hundred_items_are_taken(admin: TestClient, items: list[Any]) -> None:
    assert put(admin, *items).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b'{"items": [{"item_id": "\\ud800", "title": "T"}]}',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"items": ' * 10_000 + b"1" + b"}" * 10_000,
        b'{"items": [{"item_id": "i", "title": ' + b"9" * 5000 + b"}]}",
    ],
)
def test_a_malformed_body_is_422(admin: TestClient, body: bytes) -> None:
    reply = admin.put("/v1/items", content=body, headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["slug"]) == (422, "invalid_request")


def test_a_body_that_does_not_say_it_is_json_is_told_so(admin: TestClient) -> None:
    reply = admin.put("/v1/items", content=b'{"items": []}', headers={"Content-Type": "text/plain"})
    assert reply.status_code == 422
    assert "Content-Type: application/json" in reply.json()["detail"]


def test_concurrent_writes_take_one_revision_each_in_the_order_in_which_they_commit(
    database: Database, clock: SetClock
) -> None:
    def write(n: int) -> int:
        return put_items(
            database, clock, [Item(item_id=f"i{n}", title="t"), Item(item_id="shared", title=str(n))]
        ).catalog_revision

    with ThreadPoolExecutor(6) as pool:
        revisions = list(pool.map(write, range(30)))
    assert sorted(revisions) == list(range(1, 31))
    with database.read() as connection:
        assert repository.by_ids(connection, ["shared"])["shared"].revision == 30


def test_a_deleted_item_is_deleted_even_if_its_replica_cannot_look(
    app: FastAPI, admin: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: object) -> None:
        raise StoreUnavailable("the store went away after the commit")

    put(admin, {"item_id": "i", "title": "T"})
    monkeypatch.setattr(type(app.state.services.catalogue), "refresh", away)
    assert admin.delete("/v1/items/i").status_code == 204
    assert admin.delete("/v1/items/i").status_code == 404
