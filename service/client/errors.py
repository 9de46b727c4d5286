"""What a call of the API can fail with.

ClientError
├── ConnectionFailed      no reply came: the server is away, or the time was up
├── UnexpectedReply       a reply that is not the API's: another server, or one cut off
└── ApiError              the API refused; `slug` says why, `request_id` finds it in the server's log
    └── one class for each slug, below
"""

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Base of every failure of a call."""


class ConnectionFailed(ClientError):
    """No reply came. Whether the server did what was asked is not known."""


class UnexpectedReply(ClientError):
    """What came back is not what the API answers."""


class ApiError(ClientError):
    """The API refused (RFC 9457). errors: the places in the request, each a mapping of pointer, code and detail.

    retry_after: seconds after which the server wants to be asked again, with 429 and 503.
    """

    def __init__(
        self,
        *,
        status: int,
        slug: str,
        detail: str,
        request_id: str | None,
        errors: list[Mapping[str, Any]],
        retry_after: float | None,
    ) -> None:
        super().__init__(f"{detail} ({status} {slug}, request {request_id})")
        self.status, self.slug, self.detail = status, slug, detail
        self.request_id, self.errors, self.retry_after = request_id, errors, retry_after


class Unauthenticated(ApiError):
    """No key, or one that is unknown, expired or revoked."""


class Forbidden(ApiError):
    """The key lacks the scope."""


class NotFound(ApiError):
    """There is no such thing."""


class Conflict(ApiError):
    """The request contradicts the present state."""


class PreconditionFailed(ApiError):
    """The revision that was sent is no longer current: read again and decide again."""


class RequestTimeout(ApiError):
    """The body did not arrive in time."""


class PayloadTooLarge(ApiError):
    """Send less at once."""


class InvalidRequest(ApiError):
    """Shape or value of the request is wrong; `errors` says where."""


class TooManyRequests(ApiError):
    """More requests than the key may make."""


class Unavailable(ApiError):
    """The server is starting, stopping or overloaded."""


class StoreUnavailable(ApiError):
    """The server's database cannot be reached."""


BY_SLUG: Mapping[str, type[ApiError]] = {
    "unauthenticated": Unauthenticated,
    "forbidden": Forbidden,
    "not_found": NotFound,
    "conflict": Conflict,
    "precondition_failed": PreconditionFailed,
    "request_timeout": RequestTimeout,
    "payload_too_large": PayloadTooLarge,
    "invalid_request": InvalidRequest,
    "too_many_requests": TooManyRequests,
    "unavailable": Unavailable,
    "store_unavailable": StoreUnavailable,
}
"""Any other slug is an ApiError."""
