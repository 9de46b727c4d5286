"""Items as they are sent and shown."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.kit.fields import NO_NUL, Identifier

MAX_BATCH = 500

Title = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=NO_NUL)]
Description = Annotated[str, StringConstraints(max_length=20_000, pattern=NO_NUL)]
Category = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=NO_NUL)]
Brand = Annotated[str, StringConstraints(max_length=300, pattern=NO_NUL)]


class Item(BaseModel):
    """One item of the catalogue. A PUT replaces it whole: a field that is left out gets its default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_id: Identifier
    title: Title
    description: Description | None = None
    categories: Annotated[list[Category], Field(max_length=50)] = []
    brand: Brand | None = None
    available: Annotated[bool, Field(strict=True)] = True
    """False keeps it out of recommendations at once."""


class ItemBatch(BaseModel):
    model_config = ConfigDict(extra="forbid")

    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_BATCH)]


class PutReport(BaseModel):
    created: int
    """New, or back after a delete."""
    updated: int
    unchanged: int
    catalog_revision: int
    """Replicas that have reached this revision know the change."""


class ItemView(BaseModel):
    item_id: str
    title: str
    description: str | None
    categories: list[str]
    brand: str | None
    available: bool
    base_id: str | None
    """The base whose tokenizer gave the codes; null until the item is encoded."""
    codes: Annotated[tuple[int, ...], Field(min_length=4, max_length=4)] | None
    """The semantic ID."""
    created_at: datetime
    updated_at: datetime
    revision: int
