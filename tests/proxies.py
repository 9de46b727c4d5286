"""A TCP proxy that a test can pause: connections stay open and new ones are taken, but nothing more comes through."""

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PausableProxy:
    """Forwards 127.0.0.1:`port` to `target`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._flowing = threading.Event()
        self._flowing.set()
        self._closed = threading.Event()
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def pause(self) -> None:
        self._flowing.clear()

    def go_on(self) -> None:
        self._flowing.set()

    def close(self) -> None:
        self._closed.set()
        self._flowing.set()
        for one in self._sockets:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        self._flowing.wait()
        try:
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            with selectors.DefaultSelector() as ready, client, server:
                for one, other in ((client, server), (server, client)):
                    ready.register(one, selectors.EVENT_READ, other)
                while not self._closed.is_set():
                    for key, _ in ready.select(timeout=0.2):
                        self._flowing.wait()
                        if not (data := key.fileobj.recv(65_536)):  # type: ignore[union-attr]  # a socket was registered
                            return
                        self._flowing.wait()
                        key.data.sendall(data)
        except (OSError, ValueError):
            return


@contextmanager
def pausable(host: str, port: int) -> Iterator[PausableProxy]:
    proxy = PausableProxy((host, port))
    try:
        yield proxy
    finally:
        proxy.close()
