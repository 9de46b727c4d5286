"""A DNS server for one name, as Docker and Kubernetes have one for a service's replicas."""

import socket
import struct
import threading

A, IN, TTL_S = 1, 1, 1
HEAD = 12  # bytes before the question


class Names:
    """Answers every question for an A record with `addresses`, over UDP on the loopback, until it is closed."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.1)
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="dns")
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def _answer(self) -> None:
        while not self._ended.is_set():
            try:
                asked, client = self._socket.recvfrom(4096)
            except TimeoutError:
                continue
            end = HEAD
            while asked[end]:  # the name's labels, each after its length
                end += asked[end] + 1
            question = asked[HEAD : end + 5]
            kind = struct.unpack("!H", question[-4:-2])[0]
            found = list(self.addresses) if kind == A else []
            head = asked[:2] + struct.pack("!5H", 0x8580, 1, len(found), 0, 0)
            records = [b"\xc0\x0c" + struct.pack("!2HIH", A, IN, TTL_S, 4) + socket.inet_aton(ip) for ip in found]
            self._socket.sendto(head + question + b"".join(records), client)
