"""GET /openapi.json and /docs, FastAPI's page under a policy that lets it run exactly the two scripts that it has."""

import base64
import hashlib
import re
from functools import cache

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response

OPENAPI = "/openapi.json"
_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_SOURCES = {
    "script-src": re.compile(r'<script src="([^"]+)"'),
    "style-src": re.compile(r'<link [^>]*rel="stylesheet" href="([^"]+)"'),
    "img-src": re.compile(r'<link [^>]*icon" href="([^"]+)"'),
}


def add_docs(app: FastAPI) -> None:
    """Serve the API's document, and the page that tries it out."""
    html = bytes(get_swagger_ui_html(openapi_url=OPENAPI, title=f"{app.title} - API").body).decode()
    policy = policy_of(html)

    @cache
    def document() -> bytes:
        """Once, for whoever asks: strangers may ask often and leave it unread."""
        return bytes(JSONResponse(app.openapi()).body)

    @app.get(OPENAPI, include_in_schema=False)
    async def openapi() -> Response:
        return Response(document(), media_type="application/json")

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})


def policy_of(html: str) -> str:
    """A content policy under which `html` works: its own scripts by hash and by full address, nothing else."""
    found = {name: pattern.findall(html) for name, pattern in _SOURCES.items()}
    for script in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        found["script-src"].append(f"'sha256-{digest}'")
    found["style-src"].append("'unsafe-inline'")  # the page sets styles of its own
    found["img-src"] += ["'self'", "data:"]
    sources = "; ".join(f"{name} {' '.join(values)}" for name, values in found.items())
    return f"default-src 'none'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'; {sources}"
