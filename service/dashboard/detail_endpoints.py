"""GET /dashboard/adapters[/{version}], /users, /items, /catalogue, and the form that compares an adapter."""

from functools import partial
from typing import Annotated

from anyio import from_thread
from fastapi import APIRouter, Depends
from pydantic import StringConstraints, TypeAdapter, ValidationError
from starlette.responses import Response

from service.access.schemas import Scope
from service.adapters.contents import VERSION
from service.dashboard import adapter_pages, forms, item_pages, pictures, survey, user_pages
from service.dashboard.adapter_pages import Evidence, Measured
from service.dashboard.comparison import USERS, Difference
from service.dashboard.forms import Fields
from service.dashboard.pages import HOME, Page, page, see
from service.dashboard.schemas import SessionForm, Visitor
from service.dashboard.side_work import Piece
from service.dashboard.survey import Survey
from service.dashboard.visitors import AdminSender, SomeVisitor
from service.errors import Conflict, InvalidRequest, NotFound
from service.kit.fields import Identifier
from service.recommend.schemas import RecommendationRequest
from service.wiring import Services, ServicesDep

router = APIRouter(prefix=HOME, include_in_schema=False, route_class=Page)

ADAPTERS, USERS_PAGE, ITEMS, CATALOGUE = (f"{HOME}/{name}" for name in ("adapters", "users", "items", "catalogue"))
FOREVER_S = 1e9  # what is made of files that never change
WAIT_S = 2.0  # of a page, for what is made beside it
MOST_SEARCHED = 200

_identifier: TypeAdapter[str] = TypeAdapter(Identifier)


class CompareForm(SessionForm):
    """users: ids, one a line; empty: some of late."""

    users: Annotated[str, StringConstraints(max_length=1_000)] = ""


@router.get("/adapters")
def list_adapters(services: ServicesDep, visitor: SomeVisitor, before: str | None = None) -> Response:
    """A page of adapters, newest first, and who was trained from whom."""
    if before is not None and not VERSION.fullmatch(before):
        raise NotFound("there is no such page; go back to the first one")
    found = adapter_pages.read_list(services.prompt, before)
    return page("adapters.html", here=ADAPTERS, visitor=visitor, found=found, first=before is None)


@router.get("/adapters/{version}")
def show_adapter(services: ServicesDep, visitor: SomeVisitor, version: str) -> Response:
    """The evidence for an adapter, how far it moved each weight, and what this process compared it with last."""
    evidence = _evidence(services, version)
    return _adapter(services, visitor, evidence, services.details.comparisons.latest(version))


@router.post("/adapters/{version}/compare", dependencies=[Depends(forms.same_origin)])
def compare_adapter(services: ServicesDep, sender: AdminSender, version: str, given: Fields) -> Response:
    """Ask an adapter and what serves for a few users' next items; answers with the adapter's page."""
    users = _users(forms.read(CompareForm, given).users)
    evidence = _evidence(services, version)
    if not evidence.comparable:
        raise Conflict("this adapter serves, is gone, or is of another base than what serves; choose another one")
    compared = services.details.comparisons.compare(version, users, actor=sender.principal.actor)
    return _adapter(services, sender, evidence, compared)


@router.get("/adapters/{version}/compare")
def compared_adapter(services: ServicesDep, visitor: SomeVisitor, version: str) -> Response:
    """Where the form's answer stood, opened again."""
    return see(f"{ADAPTERS}/{_evidence(services, version).detail.adapter.adapter_version}#compare")


@router.get("/users")
def show_user(services: ServicesDep, visitor: SomeVisitor, user_id: str | None = None) -> Response:
    """A search for a user; with an id the user's past, what was recommended, and what would be now, and why."""
    if not user_id:
        lately = user_pages.read_lately(services.prompt)
        return page("users.html", here=USERS_PAGE, visitor=visitor, lately=lately)
    user_id = _known_as_id(user_id, "a user id")
    services.details.looks.note(visitor.principal.actor, user_id)
    found = user_pages.read_user(services.prompt, services.settings, services.catalogue.index, user_id)
    wanted = RecommendationRequest(user_id=user_id, explain=True)
    now = from_thread.run(partial(services.recommender.recommend, wanted, record=False))
    return page("user.html", here=USERS_PAGE, visitor=visitor, found=found, now=now)


@router.get("/items")
def show_item(
    services: ServicesDep, visitor: SomeVisitor, item_id: str | None = None, q: str | None = None
) -> Response:
    """A search by id or title; with an id the item."""
    index = services.catalogue.index
    if item_id:
        found = item_pages.read_item(services.prompt, index, _known_as_id(item_id, "an item id"))
        return page(
            "item.html",
            here=ITEMS,
            visitor=visitor,
            found=found,
            among=item_pages.AMONG,
            piece=_survey(services),
            look_back=survey.LOOK_BACK,
        )
    text = (q or "").strip()[:MOST_SEARCHED]
    results = item_pages.search(index, text) if text else None
    newest = item_pages.newest(index, 20)
    return page("items.html", here=ITEMS, visitor=visitor, text=text, results=results, newest=newest)


@router.get("/catalogue")
def show_catalogue(services: ServicesDep, visitor: SomeVisitor) -> Response:
    """How the codes are used, what shares them, what is new, hidden, without codes or never recommended."""
    return page(
        "catalogue.html",
        here=CATALOGUE,
        visitor=visitor,
        piece=_survey(services),
        look_back=survey.LOOK_BACK,
        most_lists=survey.LISTS,
        new_within=survey.NEW,
        strip=pictures.strip,
    )


def _evidence(services: Services, version: str) -> Evidence:
    if not VERSION.fullmatch(version):
        raise NotFound("there is no adapter of this name; its page is linked from the list of adapters")
    return adapter_pages.read_evidence(services.prompt, services.settings, version)


def _adapter(services: Services, visitor: Visitor, evidence: Evidence, compared: Piece[Difference]) -> Response:
    for user in compared.value.users if compared.value is not None else ():
        services.details.looks.note(visitor.principal.actor, user.user_id)
    measured = _measured(services, evidence)
    heat_map = pictures.heat_map(measured.value.movement) if measured is not None and measured.value else None
    return page(
        "adapter.html",
        here=ADAPTERS,
        visitor=visitor,
        found=evidence,
        measured=measured,
        heat_map=heat_map,
        compared=compared,
        may_change=visitor.principal.allows(Scope.ADMIN),
        most_users=USERS,
    )


def _measured(services: Services, evidence: Evidence) -> Piece[Measured] | None:
    if not evidence.movable:
        return None
    parent = evidence.parent.digest if evidence.parent is not None else None
    key = ("movement", evidence.detail.adapter.digest, parent)
    held = services.details.work.kept(key).value
    fresh_s = FOREVER_S if held is None or held.parent_gone is None else survey.FRESH_S  # the parent may come back
    work = partial(adapter_pages.measure_adapter, services.artifacts, evidence)
    return services.details.work.ask(key, work, fresh_s=fresh_s, wait_s=WAIT_S)


def _survey(services: Services) -> Piece[Survey]:
    work = partial(survey.survey, services.database, services.catalogue.index, services.clock)
    return services.details.work.ask("survey", work, fresh_s=survey.FRESH_S, wait_s=WAIT_S)


def _users(text: str) -> list[str]:
    lines = [line.strip("\r") for line in text.split("\n")]
    found = list(dict.fromkeys(_known_as_id(line, "a user id") for line in lines if line.strip()))
    if len(found) > USERS:
        raise InvalidRequest(f"at most {USERS} users are compared; give fewer, one a line")
    return found


def _known_as_id(text: str, what: str) -> str:
    try:
        return _identifier.validate_python(text)
    except ValidationError:
        raise InvalidRequest(f"this is not {what}: it has 1 to 128 characters and no control characters") from None
