"""Every failure that a caller can meet.

AdaptideError
├── ConfigurationError            a setting or an installation is wrong; the process does not start
├── StoreUnavailable       503    the database cannot be reached or is locked
├── Unauthenticated        401    no key, or a key that is unknown, expired or revoked
├── Forbidden              403    the key lacks the scope
├── NotFound               404    the named resource does not exist
├── Conflict               409    the request contradicts the present state
├── PreconditionFailed     412    If-Match names a revision that is no longer current
├── RequestTimeout         408    the body did not come in time
├── PayloadTooLarge        413
├── InvalidRequest         422    shape or value of the request is wrong
├── TooManyRequests        429
├── Unavailable            503    the part that answers this is not ready or is shedding load
├── LeaseLost                     another process holds the work; nothing was written
├── LimitExceeded                 an update took more time or memory than it may; nothing was written
├── ArtifactError                 a base or adapter failed verification and was not loaded
│   ├── ArtifactUntrusted         no key that is accepted here signed it; says nothing about its content
│   └── ArtifactMissing           its folder is not there (wrong or unmounted ARTIFACTS_URL), not damaged
│       └── ArtifactUnreachable   where it lies does not answer or refuses, this machine cannot read it, or has no room
├── ObjectsError                  objects could not be read, written or listed
│   ├── ObjectMissing             an object is not there
│   └── ObjectsAway               the place does not answer, or refuses
├── DatasetError                  a data set or import file cannot be used as it is
│   └── DatasetCutOff             it ends too early or is damaged inside; what comes before was read
└── CatalogueError                items cannot be encoded or indexed

Each carries a stable `slug` (the problem type), an HTTP `status` and a `title`; `detail` says what happened and what
to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong place in a request: a JSON pointer and a stable code."""

    pointer: str
    code: str
    detail: str


class AdaptideError(Exception):
    """Base of every expected failure. Anything else that escapes is a defect and is answered with 500."""

    slug = "internal"
    status = 500
    title = "Internal error"

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = (), retry_after: int | None = None) -> None:
        """`detail`: what happened and what to do. `retry_after`: seconds, sent as Retry-After with 429 and 503."""
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after = retry_after


class ConfigurationError(AdaptideError):
    slug, title = "configuration", "Wrong configuration"


class StoreUnavailable(AdaptideError):
    slug, status, title = "store_unavailable", 503, "The store is unavailable"


class Unauthenticated(AdaptideError):
    slug, status, title = "unauthenticated", 401, "Authentication required"


class Forbidden(AdaptideError):
    slug, status, title = "forbidden", 403, "Not allowed"


class NotFound(AdaptideError):
    slug, status, title = "not_found", 404, "Not found"


class Conflict(AdaptideError):
    slug, status, title = "conflict", 409, "Conflict with the present state"


class Overtaken(Conflict):
    """What the work rested on was changed by somebody while it was done; done anew, it may go through."""


class PreconditionFailed(AdaptideError):
    slug, status, title = "precondition_failed", 412, "The revision has moved on"


class RequestTimeout(AdaptideError):
    slug, status, title = "request_timeout", 408, "The request took too long to arrive"


class PayloadTooLarge(AdaptideError):
    slug, status, title = "payload_too_large", 413, "Request body too large"


class InvalidRequest(AdaptideError):
    slug, status, title = "invalid_request", 422, "Invalid request"


class TooManyRequests(AdaptideError):
    slug, status, title = "too_many_requests", 429, "Too many requests"


class Unavailable(AdaptideError):
    slug, status, title = "unavailable", 503, "Not available now"


class LeaseLost(AdaptideError):
    slug, title = "lease_lost", "The lease was lost"


class LimitExceeded(AdaptideError):
    slug, title = "limit_exceeded", "The update took too much"


class ArtifactError(AdaptideError):
    slug, title = "artifact_refused", "The artifact was refused"


class ArtifactUntrusted(ArtifactError):
    slug, title = "artifact_untrusted", "The artifact is not signed by a key that is accepted"


class ArtifactMissing(ArtifactError):
    slug, title = "artifact_missing", "The artifact is not there"


class ArtifactUnreachable(ArtifactMissing):
    slug, title = "artifact_unreachable", "The artifact is out of reach"


class ObjectsError(AdaptideError):
    slug, title = "objects", "The objects cannot be used"


class ObjectMissing(ObjectsError):
    slug, title = "object_missing", "The object is not there"


class ObjectsAway(ObjectsError):
    slug, title = "objects_away", "The place of the objects does not answer"


class DatasetError(AdaptideError):
    slug, status, title = "dataset_unusable", 422, "The data set cannot be used"


class DatasetCutOff(DatasetError):
    slug, title = "dataset_cut_off", "The file is cut off"


class CatalogueError(AdaptideError):
    slug, status, title = "catalogue", 422, "The catalogue cannot be used"
