"""The token of a request, read exactly as the authentication reads it (service/access/endpoints.py)."""

from fastapi.security.utils import get_authorization_scheme_param
from starlette.types import Scope


def authorization(scope: Scope) -> str:
    """The Authorization header; "" for none. Of several the first, as Starlette has it."""
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    return str(given.decode("latin-1"))


def token_of(scope: Scope) -> str:
    """What stands after the scheme, "" for nothing; stripped of all white space of Unicode, as \\xa0 and \\x85."""
    return get_authorization_scheme_param(authorization(scope))[1]
