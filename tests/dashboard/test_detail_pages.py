"""The pages of adapters, users, items and the catalogue, as a browser gets them, over both stores."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.adapters import service as registry
from service.adapters.moves import MoveRequest
from service.adapters.repository import NewAdapter
from service.adapters.states import AdapterState
from service.catalog import repository as catalog
from service.kit.db import Database
from service.kit.rates import Rates
from service.recommend.tables import recommendations
from service.settings import Settings
from tests import worlds
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock
from tests.dashboard.test_pages import statements
from tests.dashboard.visits import Shown, Visit

PAGES = ("/dashboard/adapters", "/dashboard/users", "/dashboard/items", "/dashboard/catalogue")
HOSTILE = [
    '<script>alert("1")</script>',
    'it\'s "quoted" & <b>bold</b>',
    "a/b?c=d#e%20f+g",
    "مرحبا بالعالم",
    "\u202eevil.txt",
    "x" * 128,
    " spaces ",
    "../../etc/passwd",
    "{{ 7 * 7 }}",
]


@pytest.fixture
def visit(app: FastAPI, client: TestClient) -> Visit:
    return Visit(app, client)


@pytest.fixture
def shelf(tmp_path: Path, database: Database, clock: SetClock, settings: Settings) -> Shelf:
    shelf = Shelf(tmp_path, database, clock)
    shelf.artifacts.root = settings.artifacts_dir
    return shelf


def put(visit: Visit, database: Database, clock: SetClock, *items: dict[str, object]) -> None:
    worlds.put(database, clock, list(items))
    visit.services.catalogue.refresh()


def item(item_id: str, title: str = "a title", **more: object) -> dict[str, object]:
    return {"item_id": item_id, "title": title, **more}


def give_codes(visit: Visit, database: Database, base_id: str, **codes: tuple[int, int, int, int]) -> None:
    with database.write() as connection:
        revision = catalog.next_revision(connection)
        catalog.set_codes(connection, base_id, codes, revision=revision)
    visit.services.catalogue.refresh()


def give_list(database: Database, number: int, user: str | None, at: object, *item_ids: str) -> str:
    """A stored recommendation, version 7 of an id in the order of `number`."""
    recommendation_id = f"{number:08x}-0000-7000-8000-000000000000"
    row = {
        "recommendation_id": recommendation_id,
        "user_id": user,
        "created_at": at,
        "strategy": "personalised",
        "fallback_reason": None,
        "base_id": "b",
        "adapter_version": "a000001-0123456789ab",
        "catalog_revision": 1,
        "history": [],
        "items": [[item_id, -1.0] for item_id in item_ids],
    }
    with database.write() as connection:
        connection.execute(recommendations.insert().values(**row))
    return recommendation_id


def audit(database: Database, action: str) -> list[tuple[str, str]]:
    query = sa.text("SELECT actor, subject FROM audit_log WHERE action = :action ORDER BY audit_id")
    with database.read() as connection:
        return [(actor, subject) for actor, subject in connection.execute(query, {"action": action})]


def harmless(shown: Shown) -> None:
    """No markup of others, no script or style in the page, every field labelled, every heading with its scope."""
    assert "<script>" not in shown.html
    assert "<b>bold" not in shown.html
    assert not re.search(r"<[^>]*(style=|\son\w+=|javascript:|hx-on)", shown.html)
    labelled = re.sub(r"<label[^>]*>.*?</label>", "", shown.html, flags=re.DOTALL)
    for field in re.findall(r"<(?:input|textarea)[^>]*>", labelled):
        assert 'type="hidden"' in field or re.search(r'id="(\w+)"', field), field
    assert "<th>" not in shown.html


# --- who may look ---


@pytest.mark.parametrize("path", [*PAGES, "/dashboard/adapters/a000001-0123456789ab"])
def test_without_a_session_each_page_leads_to_the_login(visit: Visit, path: str) -> None:
    reply = visit.get(path)
    assert (reply.status, reply.headers["location"]) == (303, "/dashboard/login")


def test_an_empty_store_has_pages_that_say_what_to_do(visit: Visit) -> None:
    visit.log_in(Scope.READ)
    pages = [visit.read(path) for path in PAGES]
    for page, words in zip(
        pages, ["adaptide base build", "POST /v1/events", "adaptide import items", "As of"], strict=True
    ):
        assert words in page.text
        harmless(page)
    assert visit.get("/dashboard/adapters/a000001-0123456789ab").status == 404
    assert visit.get("/dashboard/adapters/nonsense").status == 404
    assert visit.get("/dashboard/items", item_id="none").status == 404
    assert "Nothing is stored of this user" in visit.read("/dashboard/users", user_id="stranger").text


@pytest.mark.parametrize("path", [*PAGES, "/dashboard/users?user_id=u", "/dashboard/items?item_id=i"])
def test_a_store_that_does_not_answer_is_a_page_that_says_so(visit: Visit, path: str) -> None:
    visit.log_in(Scope.READ)
    nowhere = Database("postgresql://nobody@127.0.0.1:1/none", lock_timeout_s=1)
    visit.services.prompt.engine, kept = nowhere.engine, visit.services.prompt.engine
    try:
        reply = visit.get(path)
    finally:
        visit.services.prompt.engine = kept
        nowhere.close()
    assert reply.status == 503
    assert "The store did not answer" in reply.text
    assert reply.headers["retry-after"] == "1"


# --- adapters ---


def register(shelf: Shelf, base_id: str, value: float, parent: str | None = None) -> str:
    made = shelf.publish_adapter(base_id, value)
    shelf.clock.advance(minutes=1)  # type: ignore[attr-defined]
    new = NewAdapter(
        made.id,
        base_id,
        made.digest,
        "peso",
        parent_version=parent,
        hyperparameters={"learning_rate": 0.01, "<b>bold</b>": "x"},
        metrics={"ndcg_10": 0.125},
    )
    registry.register_adapter(shelf.database, shelf.clock, new, AdapterState.PASSED)
    return new.adapter_version


def test_the_list_shows_states_and_who_was_trained_from_whom(visit: Visit, shelf: Shelf) -> None:
    base_id = shelf.active_base()
    first = register(shelf, base_id, 0.5)
    second = register(shelf, base_id, 0.6, first)
    registry.promote(shelf.database, shelf.clock, shelf.artifacts, first, MoveRequest("cli"))
    registry.promote(shelf.database, shelf.clock, shelf.artifacts, second, MoveRequest("cli"))
    registry.rollback(shelf.database, shelf.clock, shelf.artifacts, MoveRequest("cli"))
    visit.log_in(Scope.READ)
    page = visit.read("/dashboard/adapters")
    harmless(page)
    lineage = page.section("lineage")
    assert f"{second} {first} – passed" not in lineage
    assert f"{second} {first} – retired r3 promoted by cli" in lineage
    assert f"{first} the base – active, serves r2 promoted by cli; r4 rolled back to by cli" in lineage
    assert f"<title>{second} was trained from {first}</title>" in page.html
    assert f"<title>revision 4: rolled back from {second} to {first}</title>" in page.html
    assert page.section("registry").index(second) < page.section("registry").index(f"{first} active")


def test_the_list_goes_on_page_by_page(
    app: FastAPI, visit: Visit, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.dashboard.adapter_pages.PAGE", 2)
    base_id = shelf.active_base()
    made = [register(shelf, base_id, 0.1 * n) for n in range(1, 4)]
    visit.log_in(Scope.READ)
    first = visit.read("/dashboard/adapters")
    assert made[0] not in first.section("registry")
    [older] = re.findall(r'href="([^"]+)" rel="next"', first.html)
    second = visit.read(older)
    assert made[0] in second.section("registry")
    assert made[2] not in second.text
    assert "Lineage" not in second.text
    with statements(app) as said:
        visit.read(older)
    assert [one for one in said if "FROM activations" in one] == []  # nothing is read for what is not drawn
    assert visit.get("/dashboard/adapters", before="<b>").status == 404


def test_an_adapters_page_shows_its_evidence_and_how_far_it_moved(visit: Visit, shelf: Shelf) -> None:
    base_id = shelf.active_base()
    parent = register(shelf, base_id, 0.5)
    child = register(shelf, base_id, 0.6, parent)
    visit.log_in(Scope.READ)
    page = visit.read(f"/dashboard/adapters/{child}")
    harmless(page)
    # Every weight of B A is 2 v^2: 0.72 against 0.5 of the parent, so every module moved by 44 % of it.
    assert "All alike: 44 %." in page.section("movement")
    assert page.section("movement").count("44 %") == 1 + 2 * 7  # in the sentence and in the table
    assert page.html.count('<g class="cell h8">') == 2 * 7
    facts = page.section("facts")
    assert f"Trained from {parent}" in facts
    assert "every byte is what was registered" in facts
    assert "no key to check signatures with is set here" in facts
    assert "learning rate 0.01" in facts
    assert "It has never served." in page.section("moves")
    assert "ndcg_10 0.125" in page.section("evidence")
    assert "An admin can" in page.section("compare")
    assert "textarea" not in page.html
    first = visit.read(f"/dashboard/adapters/{parent}")
    assert "the base gives no norms to compare with" in first.section("movement")


def test_damaged_and_missing_files_are_said_and_the_page_stays(visit: Visit, shelf: Shelf) -> None:
    base_id = shelf.active_base()
    parent = register(shelf, base_id, 0.5)
    child = register(shelf, base_id, 0.6, parent)
    shelf.damage(parent)
    visit.log_in(Scope.READ)
    assert "refused" in visit.read(f"/dashboard/adapters/{parent}").section("movement")
    page = visit.read(f"/dashboard/adapters/{child}")  # measured against the base instead, which it says
    assert f"adapter '{parent}' refused" in page.section("movement")
    assert "The norm of its update" in page.section("movement")


def test_a_large_adapter_is_not_measured(visit: Visit, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.dashboard.adapter_pages.MOST_BYTES", 10)
    version = register(shelf, shelf.active_base(), 0.5)
    visit.log_in(Scope.READ)
    assert "is measured here" in visit.read(f"/dashboard/adapters/{version}").section("movement")


def test_only_an_admin_may_have_an_adapter_compared(visit: Visit, shelf: Shelf) -> None:
    version = register(shelf, shelf.active_base(), 0.5)
    visit.log_in(Scope.READ)
    assert visit.post(f"/dashboard/adapters/{version}/compare").status == 403
    assert not audit(shelf.database, "adapter.compare")


# --- users ---


def test_a_users_page_has_the_past_and_what_was_recommended_and_taken(
    visit: Visit, database: Database, clock: SetClock
) -> None:
    put(visit, database, clock, *(item(name, f"title {name}") for name in "abcd"))
    at = clock.now - timedelta(hours=1)
    given = give_list(database, 1, "u", at, "a", "b", "c", "gone")
    events = [
        worlds.event("e0", "u", "d", at - timedelta(hours=1), "buy", value=2.5),
        worlds.event("e1", "u", "a", at + timedelta(minutes=1), recommendation_id=given, position=1),
        worlds.event("e2", "u", "b", at + timedelta(minutes=2)),
        worlds.event("e3", "other", "c", at + timedelta(minutes=2)),
        worlds.event("e4", "u", "unknown", at + timedelta(minutes=3)),
    ]
    worlds.send(database, clock, events)
    visit.log_in(Scope.READ)
    page = visit.read("/dashboard/users", user_id="u")
    harmless(page)
    lists = page.section("given")
    assert "personalised, a000001-0123456789ab, 2 of 4 taken" in lists
    assert "title a ✓ taken from this list title b ○ taken later title c gone not in the catalogue" in lists
    past = page.section("past")
    order = [
        past.index(words) for words in ("unknown not in", "title b", "view from a list title a", "buy 2.5 title d")
    ]
    assert order == sorted(order)
    now = page.section("now")
    assert "popular" in now
    assert "because: no model" in now
    assert "title c" in now
    assert "title a" not in now  # it was taken


def test_what_was_taken_is_credited_as_live_quality_credits_it(
    visit: Visit, database: Database, clock: SetClock, settings: Settings
) -> None:
    put(visit, database, clock, *(item(name, f"title {name}") for name in "abcd"))
    assert settings.quality_horizon is not None
    first, second = clock.now - 2 * settings.quality_horizon, clock.now - timedelta(hours=1)
    older = give_list(database, 1, "u", first, "a", "b", "c", "d")
    give_list(database, 2, "u", second, "b", "c")
    events = [
        worlds.event("e1", "u", "a", second),  # longer after the list than counts
        worlds.event("e2", "u", "b", second + timedelta(minutes=1)),  # the later list's
        worlds.event("e3", "u", "c", first + timedelta(minutes=1), recommendation_id=older, position=3),
        worlds.event("e4", "u", "d", first - timedelta(minutes=1), recommendation_id=older, position=4),  # a clock
    ]
    worlds.send(database, clock, events)
    visit.log_in(Scope.READ)
    newer, _, older = visit.read("/dashboard/users", user_id="u").section("given").rpartition("personalised,")
    assert "1 of 2 taken" in newer
    assert "title b ○ taken later title c" in newer
    assert "2 of 4 taken" in older
    assert "title a title b title c ✓ taken from this list title d ✓ taken from this list" in older


def test_looking_at_a_user_stores_no_recommendation_and_one_row_of_the_audit_log(
    visit: Visit, database: Database, clock: SetClock
) -> None:
    put(visit, database, clock, item("a"))
    actor = visit.log_in(Scope.READ)
    for _ in range(3):
        visit.read("/dashboard/users", user_id="somebody")
    visit.read("/dashboard/users")
    [(who, subject)] = audit(database, "user.view")
    assert who == actor
    assert subject.startswith("hmac-sha256:")
    assert "somebody" not in subject
    assert worlds.row_counts(database)["recommendations"] == 0
    admin = visit.services.access.create("dpo", frozenset({Scope.ADMIN}), actor="cli").token
    export = visit.client.get("/v1/users/somebody/export", headers={"Authorization": f"Bearer {admin}"}).text
    assert '"user.view"' in export  # who asks what is held learns who looked


def test_nobody_looks_at_very_many_users_at_once(visit: Visit) -> None:
    visit.log_in(Scope.READ)
    visit.services.details.looks._rates = Rates(0.001, 2)
    assert [visit.get("/dashboard/users", user_id=f"u{n}").status for n in range(3)] == [200, 200, 429]
    assert visit.get("/dashboard/users", user_id="u0").status == 200  # noted already


@pytest.mark.parametrize("name", HOSTILE)
def test_ids_and_titles_of_any_kind_are_shown_as_text_and_lead_back_to_themselves(
    visit: Visit, database: Database, clock: SetClock, name: str
) -> None:
    put(visit, database, clock, item(name, name, categories=[name], brand=name, description=name * 9))
    worlds.send(database, clock, [worlds.event("e", name, name, worlds.START)])
    give_list(database, 1, name, clock.now, name)
    visit.log_in(Scope.READ)
    for start, key in (("/dashboard/users", "user_id"), ("/dashboard/items", "item_id")):
        listing = visit.read(start)
        harmless(listing)
        [path] = {p for p in re.findall(rf'href="({start}\?{key}=[^"]+)"', listing.html)}
        page = visit.read(path)
        harmless(page)
        assert " ".join(name.split()) in page.text
    harmless(visit.read("/dashboard/items", q=name[:5]))
    harmless(visit.read("/dashboard/catalogue"))


@pytest.mark.parametrize("bad", ["x" * 129, "a\x00b", "line\nbreak", "\x7f"])
def test_what_is_no_id_is_refused_with_a_page(visit: Visit, bad: str) -> None:
    visit.log_in(Scope.READ)
    for path, key in (("/dashboard/users", "user_id"), ("/dashboard/items", "item_id")):
        reply = visit.get(path, **{key: bad})
        assert (reply.status, "1 to 128 characters" in reply.text) == (422, True)


# --- items ---


def test_an_items_page_has_its_text_codes_neighbours_lists_and_events(
    visit: Visit, database: Database, clock: SetClock, shelf: Shelf
) -> None:
    base_id = shelf.active_base()
    names = ("own", "twin", "three", "two", "one", "far")
    put(visit, database, clock, *(item(name, f"the {name}", brand="Acme", categories=["x", "y"]) for name in names))
    give_codes(
        visit,
        database,
        base_id,
        own=(5, 6, 7, 8),
        twin=(5, 6, 7, 8),
        three=(5, 6, 7, 9),
        two=(5, 6, 0, 0),
        one=(5, 0, 0, 0),
        far=(1, 1, 1, 1),
    )
    give_list(database, 1, "u", clock.now - timedelta(days=1), "own", "far")
    give_list(database, 2, "v", clock.now, "far")
    worlds.send(database, clock, [worlds.event("e1", "u", "own", worlds.START, "buy")])
    visit.log_in(Scope.READ)
    page = visit.read("/dashboard/items", item_id="own")
    harmless(page)
    assert "the own. x, y. Acme" in page.section("facts")
    assert "Semantic ID 5 · 6 · 7 · 8" in page.section("facts")
    near = page.section("near")
    assert "All 4: the same semantic ID 1 item the twin" in near
    assert "3 levels 1 item the three" in near
    assert "2 levels 1 item the two" in near
    assert "The first level only 1 item the one" in near
    assert "the far" not in near
    assert "1 of 2 lists, 50.0 %" in page.section("often")
    assert "buy u" in page.section("often")


def test_hidden_deleted_and_uncoded_items_say_so(visit: Visit, database: Database, clock: SetClock) -> None:
    put(visit, database, clock, item("hidden", available=False), item("deleted"))
    with database.write() as connection:
        revision = catalog.next_revision(connection)
        catalog.delete(connection, "deleted", now=clock.now, revision=revision)
    visit.services.catalogue.refresh()
    visit.log_in(Scope.READ)
    assert "not available" in visit.read("/dashboard/items", item_id="hidden").section("facts")
    assert "kept for training" in visit.read("/dashboard/items", item_id="deleted").section("facts")
    assert "It has no codes" in visit.read("/dashboard/items", item_id="hidden").section("near")


def test_items_are_found_by_the_beginning_of_their_id_or_title(
    visit: Visit, database: Database, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(visit, database, clock, item("k1", "Red kettle"), item("k2", "blue lamp"), item("z", "A red chair"))
    visit.log_in(Scope.READ)
    assert "Red kettle" in visit.read("/dashboard/items", q="red").section("results")
    assert "A red chair" not in visit.read("/dashboard/items", q="red").section("results")
    assert "blue lamp" in visit.read("/dashboard/items", q="k2").section("results")
    assert "No item begins so." in visit.read("/dashboard/items", q="%").section("results")
    monkeypatch.setattr("service.dashboard.item_pages.LOOKED_THROUGH", 1)
    few = visit.read("/dashboard/items", q="k1").section("results")
    assert "Red kettle" in few  # an exact id
    assert "Only the newest 1 items were searched" in few


# --- the catalogue ---


def test_the_catalogue_counts_codes_collisions_new_hidden_and_never_recommended_items(
    visit: Visit, database: Database, clock: SetClock, shelf: Shelf
) -> None:
    base_id = shelf.active_base()
    put(visit, database, clock, *(item(name, f"old {name}") for name in ("a", "b", "c", "d")))
    clock.advance(days=30)
    put(visit, database, clock, item("n", "brand new"), item("h", "away", available=False), item("w", "without"))
    codes = {"a": (0, 1, 1, 1), "b": (0, 1, 1, 1), "c": (1, 2, 1, 1), "d": (1, 2, 1, 2)}
    give_codes(visit, database, base_id, **codes)
    give_list(database, 1, "u", clock.now - timedelta(days=8), "d")  # too long ago to count
    give_list(database, 2, "u", clock.now - timedelta(days=1), "a", "c")
    give_list(database, 3, None, clock.now, "a", "not an item")
    visit.log_in(Scope.READ)
    page = visit.read("/dashboard/catalogue")
    harmless(page)
    cards = page.text
    assert "Items 7 4 can be recommended by a model" in cards
    assert "Hidden 1" in cards
    assert "Without codes 2" in cards
    assert "New 3 in the last 7 days" in cards
    assert "Sharing a semantic ID 2 in 1 group" in cards
    assert "Never recommended 50.0 % 2 items, in 2 lists" in cards
    assert "Level 1: 2 of 256 codes used, perplexity 2.0, entropy 1.00 of 8 bits" in page.section("levels")
    assert "Level 3: 1 of 256 codes used, perplexity 1.0, entropy 0.00 of 8 bits" in page.section("levels")
    assert "0 · 1 · 1 · 1 2 old a ; old b" in page.section("shared")
    assert "old a 2 lists, 100.0 % old c 1 list, 50.0 %" in page.section("most")
    new = page.section("new")
    assert "brand new" in new
    assert "old" not in new
    never = page.section("never")
    assert "old b" in never
    assert "old d" in never
    assert "old a" not in never


def test_what_was_counted_is_kept_for_a_minute(visit: Visit, database: Database, clock: SetClock) -> None:
    visit.log_in(Scope.READ)
    assert "Items 0" in visit.read("/dashboard/catalogue").text
    put(visit, database, clock, item("a"))
    assert "Items 0" in visit.read("/dashboard/catalogue").text


def test_what_cannot_be_counted_anew_stays_with_a_note(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    visit.log_in(Scope.READ)
    assert "Not refreshed" not in visit.read("/dashboard/catalogue").text
    monkeypatch.setattr("service.dashboard.survey.FRESH_S", -1.0)
    nowhere = Database("postgresql://nobody@127.0.0.1:1/none", lock_timeout_s=1)
    monkeypatch.setattr(visit.services.database, "engine", nowhere.engine)
    page = visit.read("/dashboard/catalogue")
    nowhere.close()
    assert "Not refreshed since 2026-03-01 12:00:00 UTC: the store did not answer" in page.text
    assert "Items 0" in page.text


def test_long_counts_stop_and_say_so(
    visit: Visit, database: Database, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.dashboard.survey.LISTS", 4)
    monkeypatch.setattr("service.dashboard.survey.READ", 2)
    for number in range(9):
        give_list(database, number, "u", clock.now, "a")
    visit.log_in(Scope.READ)
    page = visit.read("/dashboard/catalogue")
    assert "in 4 lists" in page.text
    assert "older ones were left out" in page.section("never")
