"""Whom a request of a browser acts for: the dependencies that every page and form is given."""

from typing import Annotated

from fastapi import Depends, Request

from service.access.schemas import Scope
from service.dashboard.forms import Fields
from service.dashboard.schemas import Visitor
from service.errors import Forbidden, Unauthenticated
from service.kit import keys
from service.settings import Environment, Settings
from service.wiring import ServicesDep


def secure(settings: Settings) -> bool:
    return settings.environment is Environment.PRODUCTION


def cookie_name(settings: Settings) -> str:
    """With __Host- browsers take the cookie from this host alone, over TLS; in development there is no TLS."""
    return "__Host-adaptide" if secure(settings) else "adaptide"


def visitor(request: Request, services: ServicesDep) -> Visitor:
    """Whom the request's session acts for. Raises Unauthenticated, which sends to the login."""
    secret = request.cookies.get(cookie_name(services.settings))
    found = services.sessions.visitor(secret) if secret else None
    if found is None:
        raise Unauthenticated("there is no session")
    request.state.principal = found.principal
    return found


SomeVisitor = Annotated[Visitor, Depends(visitor)]
"""Of a page: anybody with a session."""


def sender(visitor: SomeVisitor, given: Fields) -> Visitor:
    """Whom a form acts for. Raises Forbidden when it does not carry its session's token."""
    if not keys.same(given.get("csrf", ""), visitor.csrf):
        raise Forbidden("this form is not of your session; load the page again")
    return visitor


Sender = Annotated[Visitor, Depends(sender)]


def admin(sender: Sender) -> Visitor:
    """Whom a form of an admin acts for. Raises Forbidden."""
    if not sender.principal.allows(Scope.ADMIN):
        raise Forbidden("your key may look, but not change what serves")
    return sender


AdminSender = Annotated[Visitor, Depends(admin)]
