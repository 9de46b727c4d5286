"""Routes of recommendations."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from service.access.endpoints import Admin, Reader
from service.audit.refusals import Audited
from service.http.bodies import question, takes
from service.http.disconnect import unless_gone
from service.kit.fields import Identifier
from service.recommend.replay import find_recommendation
from service.recommend.schemas import (
    Filters,
    Name,
    RecommendationReply,
    RecommendationRequest,
    SimilarReply,
    StoredRecommendation,
)
from service.wiring import ServicesDep

router = APIRouter(prefix="/v1", tags=["recommendations"])
admin = APIRouter(tags=["admin"], route_class=Audited)


@router.post("/recommendations", openapi_extra=takes(RecommendationRequest))
async def recommend(
    services: ServicesDep,
    principal: Reader,
    request: Request,
    wanted: Annotated[RecommendationRequest, question(RecommendationRequest)],
) -> RecommendationReply:
    """Items that a user, or a history, is likely to take next. An unknown user gets popular items."""
    return await unless_gone(request, services.recommender.recommend(wanted))


@router.get("/users/{user_id:path}/recommendations")
async def recommend_for(
    services: ServicesDep,
    principal: Reader,
    request: Request,
    user_id: Identifier,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> RecommendationReply:
    """Short form: the stored history, seen items left out."""
    wanted = RecommendationRequest(user_id=user_id, limit=limit)
    return await unless_gone(request, services.recommender.recommend(wanted))


@router.get("/items/{item_id:path}/similar")
async def similar_items(
    services: ServicesDep,
    principal: Reader,
    request: Request,
    item_id: Annotated[Identifier, Path()],
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    category: Annotated[Name | None, Query()] = None,
    brand: Annotated[Name | None, Query()] = None,
) -> SimilarReply:
    """More like this: what lies nearest to an item by its semantic ID, and of what is equally near what is taken next.

    The item may be unavailable, but not deleted. `category` and `brand` in any case. Nothing is recorded.
    """
    wanted = Filters(category=category, brand=brand)
    return await unless_gone(request, services.similar.similar(item_id, limit, wanted))


@admin.get("/v1/admin/recommendations/{recommendation_id}")
def read_recommendation(services: ServicesDep, principal: Admin, recommendation_id: Identifier) -> StoredRecommendation:
    """What is kept of a past recommendation; `adaptide replay` computes it again. 404 when it is not kept any more."""
    return StoredRecommendation.of(find_recommendation(services.prompt, recommendation_id))
