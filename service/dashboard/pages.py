"""HTML of the dashboard: templates, the headers that each page carries, and failures as pages.

A page is rendered with `page(template, visitor=..., here=...)` over templates/layout.html; a part that the page asks
for anew every few seconds with the same, over no layout. Templates know the filters of words.py and window_words.py,
`static(name)` and the macros of templates/macros.html.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import Response

from service.adapters.states import PROMOTABLE
from service.audit.refusals import Audited
from service.dashboard import window_words, words
from service.dashboard.assets import static_url
from service.dashboard.navigation import NAV
from service.errors import AdaptideError, NotFound, StoreUnavailable, Unauthenticated

HOME, LOGIN = "/dashboard", "/dashboard/login"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    # Not no-referrer: browsers then send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
}

_templates = Environment(
    loader=PackageLoader("service.dashboard"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.globals |= {"nav": NAV, "static": static_url, "promotable": PROMOTABLE}
_templates.filters |= words.FILTERS | window_words.FILTERS


def page(template: str, *, status: int = 200, here: str = "", **shown: Any) -> HTMLResponse:
    """A rendered template; everything in `shown` is escaped.

    here: the path of the link in the navigation that this page lies under. visitor: has to be among `shown` for whom
    is logged in, who then sees the navigation.
    """
    return HTMLResponse(_templates.get_template(template).render(here=here, **shown), status, HEADERS)


def see(path: str) -> RedirectResponse:
    """Sends the browser on with a GET."""
    return RedirectResponse(path, 303, HEADERS)


class Page(Audited):
    """A route that answers a browser: without a session it sends to the login, other failures are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def shown(request: Request) -> Response:
            try:
                return await handle(request)
            except Unauthenticated:
                return _away(request)
            except RequestValidationError:  # a word where a number belongs in the address
                return failure(NotFound("there is no such page; follow a link of the dashboard"))
            except AdaptideError as error:
                return failure(error)

        return shown


def _away(request: Request) -> Response:
    if "hx-request" not in request.headers:
        return see(LOGIN)
    # A script would follow a redirect and put the login into the page; this it takes as "go there".
    return Response(status_code=401, headers=HEADERS | {"HX-Redirect": LOGIN})


def failure(error: AdaptideError) -> Response:
    """A page that says what happened. What only the operator may know is left to the log."""
    if error.status == 500:
        raise error
    detail = "The store did not answer; try again." if isinstance(error, StoreUnavailable) else error.detail
    reply = page("error.html", status=error.status, title=error.title, detail=detail)
    if error.status in (429, 503):
        reply.headers["Retry-After"] = str(error.retry_after or 1)
    return reply
