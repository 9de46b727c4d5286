"""Routes of recommendations."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from service.access.endpoints import Reader
from service.http.disconnect import unless_gone
from service.kit.fields import Identifier
from service.recommend.schemas import RecommendationReply, RecommendationRequest
from service.wiring import ServicesDep

router = APIRouter(prefix="/v1", tags=["recommendations"])


@router.post("/recommendations")
async def recommend(
    services: ServicesDep, principal: Reader, request: Request, wanted: RecommendationRequest
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
