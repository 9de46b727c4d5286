"""PUT /v1/items, GET and DELETE /v1/items/{item_id}."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import ValidationError

from service.access.endpoints import Reader, Writer
from service.adapters.bus import Change
from service.catalog import service
from service.catalog.schemas import ItemBatch, ItemView, PutReport
from service.errors import StoreUnavailable
from service.http.bodies import WriteBody, need_json, read_json, takes, wrong
from service.kit.fields import Identifier
from service.wiring import ServicesDep

router = APIRouter(tags=["items"])

ItemId = Annotated[Identifier, Path()]


def parse_batch(body: bytes | bytearray, content_type: str) -> ItemBatch:
    """The items of a request body. Raises InvalidRequest or RequestValidationError."""
    need_json(content_type)
    try:
        return ItemBatch.model_validate(read_json(body))
    except ValidationError as error:
        raise wrong(error) from None


@router.put(
    "/v1/items",
    responses={422: {"description": "A wrong item; nothing was written"}},
    openapi_extra=takes(ItemBatch),
)
async def put_items(request: Request, services: ServicesDep, principal: Writer, body: WriteBody) -> PutReport:
    """Create or replace up to 500 items, all or none: one wrong item refuses the request and says which (422).

    New items get their semantic ID at once and can be recommended within a second. An item keeps its semantic ID when
    its text changes. A deleted item comes back.
    """
    content_type = request.headers.get("content-type", "")

    def put() -> PutReport:
        items = parse_batch(body, content_type).items
        report = service.put_items(services.database, services.clock, items, services.codec())
        services.catalogue.notify()
        services.shared.announce(Change.CATALOGUE)
        return report

    return await services.intake.work(put)


@router.get("/v1/items/{item_id:path}")
def read_item(services: ServicesDep, principal: Reader, item_id: ItemId) -> ItemView:
    """One item with its semantic ID."""
    return service.get_item(services.database, item_id)


@router.delete("/v1/items/{item_id:path}", status_code=204)
def delete_item(services: ServicesDep, principal: Writer, item_id: ItemId) -> None:
    """Hide an item from recommendations at once. It stays known for training; PUT brings it back."""
    service.delete_item(services.database, services.clock, item_id)
    services.shared.announce(Change.CATALOGUE)
    try:
        services.catalogue.refresh()
    except StoreUnavailable:  # it is deleted all the same: whoever is told otherwise would ask again and find nothing
        services.catalogue.notify()
