"""The HTTP server, with a stop that a balancer does not notice: not ready, then not listening, then gone."""

import asyncio
import atexit
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import structlog
import uvicorn

GRACE_S = 20.0  # from SIGTERM on, draining included; the whole stop stays within 25 s
STOP_S = 23.0  # from SIGTERM on: what hangs by then is left behind, its transactions undone
LINGER_S = 0.5  # a request may be on its way over a connection that looks idle
KEEP_ALIVE_S = 75  # longer than balancers keep an idle connection (often 60 s), or they send into one that is closing
LOOK_S = 0.05

log = structlog.get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """uvicorn, which calls `drain` at SIGTERM and goes on answering for `delay` before it stops to listen.

    What came until then is answered, in the listener's queue and on connections that are kept open; each reply closes
    its connection. The process ends STOP_S after SIGTERM at the latest.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None], delay: timedelta) -> None:
        config.timeout_graceful_shutdown = round(GRACE_S - LINGER_S - delay.total_seconds())
        config.timeout_keep_alive = KEEP_ALIVE_S
        super().__init__(config)
        self._drain, self._delay_s = drain, delay.total_seconds()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        end_after(STOP_S)
        self._drain()
        if self._delay_s:
            log.info("draining", seconds=self._delay_s)
        await self._wait(self._delay_s)
        await self._stop_listening(sockets or [])
        await self._wait(LINGER_S, lambda: not self.server_state.connections)
        await super().shutdown(sockets)

    async def _wait(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> None:
        now = asyncio.get_running_loop().time
        until = now() + seconds
        while now() < until and not enough() and not self.force_exit:  # noqa: ASYNC110  # set by a signal
            await asyncio.sleep(LOOK_S)

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Closing a listener would reset the connections in its queue, though their clients may have sent by now."""
        queues = [listener.dup() for listener in sockets]
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()
        waiting = []
        for queue in queues:
            queue.setblocking(False)
            with queue, suppress(BlockingIOError):
                while True:
                    waiting.append(queue.accept()[0])
        loop = asyncio.get_running_loop()
        for connection in waiting:
            with suppress(OSError):  # it has gone already
                await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn does
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def end_after(seconds: float) -> None:
    """End this process with status 0 then, unless it has ended: threads that hang would keep it as long as they do."""

    def end() -> None:
        log.warning("stop_cut_short", seconds=seconds, threads=[thread.name for thread in threading.enumerate()])
        os._exit(0)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def end_with_threads() -> None:
    """Threads that still run when this process ends, status 0, end with it: one that loads a model, for example.

    Without this the interpreter ends them by unwinding their stacks, and where one is within torch's C++ that ends the
    process with SIGABRT.
    """

    def end() -> None:  # the interpreter has waited for the threads that are not daemons by now
        left = [thread for thread in threading.enumerate() if thread.daemon and not isinstance(thread, threading.Timer)]
        if left:
            log.info("threads_left_behind", threads=[thread.name for thread in left])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    atexit.register(end)
