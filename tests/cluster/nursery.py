"""Starts many `adaptide` processes for the price of one: what they all import is imported once, then they are forked.

`python -m tests.cluster.nursery` reads orders from its input, one JSON a line: {"arguments", "environment", "log"}. It
answers with {"pid"}, and with {"pid", "status"} when one has ended. When its input ends, it kills what is left.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn


class Nursery:
    """The other end: start(), and how each has ended."""

    def __init__(self, log: Path) -> None:
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.nursery"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                text=True,
            )
        self._born: list[int] = []
        self._ended: dict[int, int] = {}
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="nursery")
        self._reader.start()

    def start(self, arguments: list[str], environment: dict[str, str], log: Path) -> int:
        """`adaptide` with these arguments and nothing but this environment; its process id."""
        assert self._child.stdin is not None
        with self._changed:
            known = len(self._born)
            order = {"arguments": arguments, "environment": environment, "log": str(log)}
            self._child.stdin.write(json.dumps(order) + "\n")
            self._child.stdin.flush()
            assert self._changed.wait_for(lambda: len(self._born) > known, 120), "the nursery does not answer"
            return self._born[-1]

    def status(self, pid: int, seconds: float = 0) -> int | None:
        """As subprocess has it: negative for a signal; None when it still runs after `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: pid in self._ended, seconds)
            return self._ended.get(pid)

    def close(self) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait(300)  # on a machine with much else to do
        self._reader.join()
        self._child.stdout.close()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            answer = json.loads(line)
            with self._changed:
                if "status" in answer:
                    self._ended[answer["pid"]] = answer["status"]
                else:
                    self._born.append(answer["pid"])
                    self._ended.pop(answer["pid"], None)  # of a former process with this number
                self._changed.notify_all()


def main() -> None:
    import uvicorn  # noqa: F401  # so that the children have it

    import trainer.schedule
    import trainer.updater  # noqa: F401

    alive: set[int] = set()
    waiting = b""
    open_ = True
    while open_ or alive:
        ready, _, _ = select.select([0] if open_ else [], [], [], 0.05)
        if ready:
            read = os.read(0, 65536)
            open_ = bool(read)
            *lines, waiting = (waiting + read).split(b"\n")
            for line in lines:
                alive.add(pid := _fork(json.loads(line)))
                _say(pid=pid)
            if not open_:
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
        for pid in list(alive):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                alive.remove(pid)
                _say(pid=pid, status=os.waitstatus_to_exitcode(status))


def _fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        _become(order)
    return pid


def _become(order: dict[str, Any]) -> NoReturn:
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.argv = ["adaptide", *order["arguments"]]
        import trainer.cli

        trainer.cli.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _say(**answer: int) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
