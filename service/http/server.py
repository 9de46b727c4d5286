"""The HTTP server, with a stop that a balancer does not notice: not ready, then not listening, then gone."""

import asyncio
import socket
from collections.abc import Callable
from datetime import timedelta

import structlog
import uvicorn

GRACE_S = 20.0  # from SIGTERM on, draining included; the whole stop stays within 25 s
KEEP_ALIVE_S = 75  # longer than balancers keep an idle connection (often 60 s), or they send into one that is closing
LOOK_S = 0.05

log = structlog.get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """uvicorn, which calls `drain` at SIGTERM and goes on answering for `delay` before it stops to listen."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None], delay: timedelta) -> None:
        config.timeout_graceful_shutdown = round(GRACE_S - delay.total_seconds())
        config.timeout_keep_alive = KEEP_ALIVE_S
        super().__init__(config)
        self._drain, self._delay_s = drain, delay.total_seconds()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._drain()
        if self._delay_s:
            log.info("draining", seconds=self._delay_s)
        until = asyncio.get_running_loop().time() + self._delay_s
        while asyncio.get_running_loop().time() < until and not self.force_exit:  # noqa: ASYNC110  # set by a signal
            await asyncio.sleep(LOOK_S)
        await super().shutdown(sockets)
