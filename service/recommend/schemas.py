"""What a client asks for and gets (CONTRACT.md, POST /v1/recommendations)."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StringConstraints

from service.kit.fields import NO_NUL, Identifier
from service.settings import FilterMode


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


Name = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=300, pattern=NO_NUL)]
MOST_CANDIDATES = 10_000


class Filters(BaseModel):
    """Conditions on the items of the reply; an item has to meet all that are given. Names in any case.

    That an item is available, and not seen or excluded, holds whatever the filters say.
    """

    model_config = ConfigDict(extra="forbid")

    category: Name | None = Field(default=None, description="A category that the item has.")
    categories: Annotated[list[Name], Field(min_length=1, max_length=100)] | None = Field(
        default=None, description="Categories of which the item has at least one."
    )
    brand: Name | None = Field(default=None, description="The item's brand.")
    item_ids: Annotated[list[Identifier], Field(min_length=1, max_length=MOST_CANDIDATES)] | None = Field(
        default=None, description="The candidates: only these items are ranked. Unknown ids are passed over."
    )

    @property
    def given(self) -> bool:
        return not (self.category is None and self.categories is None and self.brand is None and self.item_ids is None)


def _number(value: Any) -> Any:
    """pydantic takes true for 1 and "5" for 5; JSON's 5.0 is an integer to it and to the document."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("an integer is needed")
    return value


class RecommendationRequest(BaseModel):
    """Whose next items, how many, and which not. Without user_id and history the reply is popular items."""

    model_config = ConfigDict(extra="forbid")

    user_id: Identifier | None = None
    history: Annotated[list[Identifier], Field(max_length=200)] | None = Field(
        default=None, description="Item ids, oldest first; taken instead of the stored history of user_id."
    )
    limit: Annotated[int, Field(ge=1, le=100), BeforeValidator(_number)] = 10
    exclude_item_ids: Annotated[list[Identifier], Field(max_length=500)] = []
    include_seen: StrictBool = False
    filters: Filters = Filters()
    filter_mode: FilterMode | None = Field(
        default=None,
        description="When the filters leave fewer than `limit`: `strict`, a shorter list, or `relaxed`, filled up with "
        "items that do not match. Default: ADAPTIDE_FILTER_MODE.",
    )
    diversity: Annotated[float, Field(ge=0, le=1, strict=True)] = Field(
        default=0.0,
        description="How much the list is spread over kinds of items (the first code of the semantic ID): each better "
        "item of its kind makes an item count (1 - diversity) times as likely. 0: not at all; 1: a kind comes again "
        "only when no other is left.",
    )
    exploration: Annotated[float, Field(ge=0, le=1, strict=True)] | None = Field(
        default=None,
        description="Share of the list that goes to cold items, those with few interactions so far. Default: "
        "ADAPTIDE_EXPLORATION_SHARE.",
    )
    explain: StrictBool = False

    @property
    def is_plain(self) -> bool:
        """One search answers it."""
        return not (self.diversity or self.exploration or self.filters.given)

    def resolved(self, filter_mode: FilterMode, exploration: float) -> "RecommendationRequest":
        """With these where the client leaves it to the settings and it matters: what is answered, and recorded.

        What is still None afterwards had no effect.
        """
        open_: dict[str, object] = {}
        if self.filter_mode is None and self.filters.given:
            open_["filter_mode"] = filter_mode
        if self.exploration is None and exploration:
            open_["exploration"] = exploration
        return self.model_copy(update=open_) if open_ else self


def _is_none(value: object) -> bool:
    return value is None


class RecommendedItem(BaseModel):
    """score: log-probability of the item's semantic ID (personalised, base), or popularity relative to the top item."""

    item_id: str
    rank: int
    score: float
    title: str | None = None
    reasons: list[str] | None = None
    filtered: bool | None = Field(
        default=None,
        exclude_if=_is_none,
        description="With filters: whether the item meets them; false: it fills a list that was short.",
    )
    exploration: bool | None = Field(
        default=None,
        exclude_if=_is_none,
        description="With exploration: whether the item has its place because it is cold.",
    )


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
    filters_applied: FilterMode | None = Field(
        default=None,
        description="With filters: `strict` when every item meets them, `relaxed` when others fill the list.",
    )
    missing: int = Field(
        default=0, description="How many items fewer than `limit` there are, because no more are left."
    )
    unknown_history: list[str] | None = Field(
        default=None,
        exclude_if=_is_none,
        description="Items of the given history that are not in the catalogue, or not encoded yet.",
    )


class SimilarItem(BaseModel):
    """score: log-probability of being taken after the item (personalised, base), or popularity.

    shared_levels: levels of the semantic ID, 0 to 4, that it shares from the first on. shared_categories: how many.
    """

    item_id: str
    rank: int
    score: float
    title: str
    shared_levels: int
    shared_categories: int


class SimilarReply(BaseModel):
    """Nearest first: by shared_levels, then by score. Before an item has a semantic ID: by shared_categories."""

    item_id: str
    items: list[SimilarItem]
    strategy: Strategy
    fallback_reason: FallbackReason | None = None
    model: ModelInfo | None = None
    missing: int = Field(
        default=0, description="How many items fewer than `limit` there are, because no more are left."
    )


class StoredItem(BaseModel):
    item_id: str
    score: float


class StoredRecommendation(BaseModel):
    """What the store keeps of a recommendation; docs/time-travel.md says what each part of `computed` is."""

    recommendation_id: str
    user_id: str | None
    created_at: datetime
    strategy: Strategy
    fallback_reason: FallbackReason | None
    base_id: str | None
    adapter_version: str | None
    catalog_revision: int
    history: list[str] = Field(description="Item ids that the prompt held, oldest first.")
    items: list[StoredItem]
    request: dict[str, Any] | None = Field(description="Fields that differ from their defaults, and the limit.")
    computed: dict[str, Any] | None
    settings: dict[str, Any] | None = Field(description="Settings, engine and machine that computed it.")

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "StoredRecommendation":
        """row: as repository.find gives it."""
        items = [StoredItem(item_id=item_id, score=score) for item_id, score in row["items"]]
        return cls.model_validate({**row, "items": items, "settings": row["details"]})
