"""A typed client of the API: httpx and the standard library, nothing else of Adaptide (docs/client.md)."""

from service.client.asynchronous import AsyncClient
from service.client.batching import EventBatcher, Full
from service.client.errors import ApiError, ClientError, ConnectionFailed, UnexpectedReply
from service.client.models import Event, Filters, Item, RecommendationReply, RecommendationRequest
from service.client.retries import NEVER, Retries
from service.client.synchronous import Client

__all__ = [
    "NEVER",
    "ApiError",
    "AsyncClient",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "Event",
    "EventBatcher",
    "Filters",
    "Full",
    "Item",
    "RecommendationReply",
    "RecommendationRequest",
    "Retries",
    "UnexpectedReply",
]
