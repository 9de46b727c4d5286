"""Forms that a browser posts: from our own pages only, small, each field once."""

from typing import Annotated, TypeVar
from urllib.parse import parse_qsl, urlsplit

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from service.errors import Forbidden, InvalidRequest
from service.http.bodies import small

MOST_FIELDS = 10

Form = TypeVar("Form", bound=BaseModel)


def same_origin(request: Request) -> None:
    """Raises Forbidden unless the browser says that the form is of this site; one that says nothing is refused."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    own = request.headers.get("host", "").lower()
    foreign = origin is not None and urlsplit(origin).netloc.lower() != own
    if (site is None and origin is None) or site not in (None, "same-origin") or foreign or not own:
        raise Forbidden("this form was not sent from the dashboard's own page; load the page again")


async def fields(request: Request) -> dict[str, str]:
    """The fields of a posted form. Raises InvalidRequest unless it is one, PayloadTooLarge."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise InvalidRequest("a form is needed: application/x-www-form-urlencoded")
    body = await small(request)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except ValueError:
        raise InvalidRequest("the form cannot be read") from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidRequest("the form names a field twice")
    return found


Fields = Annotated[dict[str, str], Depends(fields)]


def read(form: type[Form], given: dict[str, str]) -> Form:
    """`given` as a form. Raises InvalidRequest naming the fields that are wrong, without their values."""
    try:
        return form.model_validate(given)
    except ValidationError as error:
        wrong = sorted({str(found["loc"][0]) for found in error.errors() if found["loc"]})
        raise InvalidRequest(f"these fields of the form are not right: {', '.join(wrong)}") from None
