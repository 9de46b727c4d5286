"""What a reply that is not of 2xx says."""

from typing import Any

import httpx

from service.client.errors import BY_SLUG, ApiError


def retry_after(reply: httpx.Response) -> float | None:
    """Seconds; None for none, or a date, which the API never sends."""
    try:
        return max(0.0, float(reply.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None


def to_error(reply: httpx.Response) -> ApiError:
    """The error that a problem names; a reply without one comes from something before the API, such as a balancer."""
    try:
        problem: Any = reply.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "slug" not in problem:
        problem = {"slug": f"status_{reply.status_code}", "detail": reply.text[:200] or reply.reason_phrase}
    slug = str(problem["slug"])
    return BY_SLUG.get(slug, ApiError)(
        status=reply.status_code,
        slug=slug,
        detail=str(problem.get("detail", "")),
        request_id=problem.get("request_id") or reply.headers.get("X-Request-ID"),
        errors=problem.get("errors") or [],
        retry_after=retry_after(reply),
    )
