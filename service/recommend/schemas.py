"""What a client asks for and gets (CONTRACT.md, POST /v1/recommendations)."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.kit.fields import Identifier


class Strategy(StrEnum):
    """Which rung of the ladder answered."""

    PERSONALISED = "personalised"
    BASE = "base"
    POPULAR = "popular"


class FallbackReason(StrEnum):
    """Why the reply is not personalised."""

    NO_MODEL = "no_model"
    NO_ADAPTER = "no_adapter"
    NO_HISTORY = "no_history"
    HISTORY_UNKNOWN = "history_unknown"
    OVERLOADED = "overloaded"
    DEADLINE = "deadline"
    ENGINE_ERROR = "engine_error"
    STORE_UNAVAILABLE = "store_unavailable"


class Filters(BaseModel):
    """Hard conditions on every item of the reply."""

    model_config = ConfigDict(extra="forbid")

    category: Annotated[str, Field(min_length=1, max_length=300)] | None = None


class RecommendationRequest(BaseModel):
    """Whose next items, how many, and which not. Without user_id and history the reply is popular items."""

    model_config = ConfigDict(extra="forbid")

    user_id: Identifier | None = None
    history: Annotated[list[Identifier], Field(max_length=200)] | None = Field(
        default=None, description="Item ids, oldest first; taken instead of the stored history of user_id."
    )
    limit: Annotated[int, Field(ge=1, le=100)] = 10
    exclude_item_ids: Annotated[list[Identifier], Field(max_length=500)] = []
    include_seen: bool = False
    filters: Filters = Filters()
    explain: bool = False


class RecommendedItem(BaseModel):
    """score: log-probability of the item's semantic ID (personalised, base), or popularity relative to the top item."""

    item_id: str
    rank: int
    score: float
    title: str | None = None
    reasons: list[str] | None = None


class ModelInfo(BaseModel):
    """The model that ranked the reply; trained_through is the newest event that it has learnt from."""

    adapter_version: str | None
    base: str
    trained_through: datetime | None


class RecommendationReply(BaseModel):
    recommendation_id: str
    items: list[RecommendedItem]
    strategy: Strategy
    fallback_reason: FallbackReason | None = None
    model: ModelInfo | None = None
