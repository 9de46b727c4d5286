"""The dashboard's pages together: its files, login and logout, and the forms that promote and roll back are here."""

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from service.adapters import service as adapters
from service.adapters.bus import Change
from service.adapters.moves import MoveRequest
from service.dashboard import forms, overview_pages, quality_pages, windows_pages
from service.dashboard.assets import reply
from service.dashboard.forms import Fields
from service.dashboard.pages import HOME, LOGIN, Page, page, see
from service.dashboard.schemas import LIFETIME, LoginForm, MoveForm, SessionForm, Visitor
from service.dashboard.visitors import AdminSender, Sender, cookie_name, secure
from service.errors import InvalidRequest, Unauthenticated
from service.wiring import Services, ServicesDep

_own = APIRouter(prefix=HOME, route_class=Page)


@_own.get("/static/{address:path}")
async def static_file(address: str, request: Request) -> Response:
    """Scripts, styles and pictures, for anybody: the login needs them too. From memory, hence on the event loop."""
    headers = request.headers
    return reply(address, accepts=headers.get("accept-encoding", ""), held=headers.get("if-none-match", ""))


@_own.get("/login")
def show_login() -> Response:
    return page("login.html", failed=False)


@_own.post("/login", dependencies=[Depends(forms.same_origin)])
async def log_in(request: Request, services: ServicesDep, given: Fields) -> Response:
    """Exchange a key that may read for a session, new each time."""
    services.failures.check(request.scope)
    key, earlier = forms.read(LoginForm, given).key, request.cookies.get(cookie_name(services.settings))
    try:
        secret = await run_in_threadpool(services.sessions.open, key, earlier)
    except Unauthenticated:
        services.failures.note(request.scope)
        refused = page("login.html", status=401, failed=True)
        refused.headers["WWW-Authenticate"] = "Bearer"
        return refused
    sent = see(HOME)
    _set_cookie(sent, services, secret, int(LIFETIME.total_seconds()))
    return sent


@_own.post("/logout", dependencies=[Depends(forms.same_origin)])
def log_out(request: Request, services: ServicesDep, sender: Sender, given: Fields) -> Response:
    """End the session everywhere."""
    forms.read(SessionForm, given)
    services.sessions.close(request.cookies[cookie_name(services.settings)], actor=sender.principal.actor)
    sent = see(LOGIN)
    _set_cookie(sent, services, "", 0)
    return sent


@_own.post("/promote", dependencies=[Depends(forms.same_origin)])
def promote(services: ServicesDep, sender: AdminSender, given: Fields) -> Response:
    """As POST /v1/admin/adapters/{version}/promote, under the revision that the page showed."""
    form = _confirmed(given)
    adapters.promote(services.database, services.clock, services.artifacts, form.version, _request(sender, form))
    return _moved(services)


@_own.post("/rollback", dependencies=[Depends(forms.same_origin)])
def rollback(services: ServicesDep, sender: AdminSender, given: Fields) -> Response:
    """As POST /v1/admin/adapters/rollback, to the version that the page named."""
    form = _confirmed(given)
    adapters.rollback(services.database, services.clock, services.artifacts, _request(sender, form), form.version)
    return _moved(services)


def _confirmed(given: dict[str, str]) -> MoveForm:
    form = forms.read(MoveForm, given)
    if form.confirmation != form.version:
        raise InvalidRequest(f"to confirm, type {form.version} as it is written; nothing was changed")
    return form


def _request(sender: Visitor, form: MoveForm) -> MoveRequest:
    return MoveRequest(sender.principal.actor, form.reason or None, form.revision)


def _moved(services: Services) -> Response:
    services.pointer_moved()
    services.shared.announce(Change.POINTER)
    return see(HOME)


def _set_cookie(sent: Response, services: Services, value: str, seconds: int) -> None:
    settings = services.settings
    sent.set_cookie(
        cookie_name(settings), value, seconds, path="/", secure=secure(settings), httponly=True, samesite="strict"
    )


router = APIRouter(include_in_schema=False)
for each in (_own, overview_pages.router, windows_pages.router, quality_pages.router):
    router.include_router(each)
