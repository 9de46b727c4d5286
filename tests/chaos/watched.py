"""`python -m tests.chaos.watched ORDERS.json`: the real activation and the real updater, watched while they meet cases.

An audit hook notes what a load must not do: run or unpickle foreign code, start a process, connect or look a name up,
open a file outside. The report is one JSON line: what came of each case, what was noted, and what the hook notes when
the forbidden things are done on purpose.
"""

import contextlib
import json
import os
import pickle
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.adapters import service as registry
from service.adapters.activation import Activation
from service.adapters.artifacts import BASES, VerifiedAdapter, VerifiedBase
from service.adapters.moves import MoveRequest
from service.adapters.place import open_artifacts
from service.adapters.repository import NewAdapter, NewBase, read_pointer
from service.adapters.states import AdapterState
from service.errors import ArtifactError
from service.generation.engine import ServedModel
from service.generation.select import SelectedEngine
from service.kit.clock import utc_now
from service.kit.db import Database
from service.settings import load_settings
from trainer.outcome import Range
from trainer.updater import Updater

TRAINED = datetime(2026, 2, 1, tzinfo=UTC)
STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class"}
LOOKS_UP = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}


class Watch:
    """`noted` grows while `watching`; `ports`: of loopback, which may be connected to."""

    def __init__(self, outside: Path, ports: set[int]) -> None:
        self.noted: list[str] = []
        self.watching = False
        self._outside, self._ports = [str(outside), "/etc/passwd"], ports
        self._ours = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), str(Path(os.__file__).parent))
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event in STARTS or (event in LOOKS_UP and arguments[0] not in ("127.0.0.1", "localhost", None)):
            self.noted.append(f"{event} {arguments[:2]}")
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            if arguments[1][0] != "127.0.0.1" or arguments[1][1] not in self._ports:
                self.noted.append(f"{event} {arguments[1]}")
        elif event == "exec":
            name = getattr(arguments[0], "co_filename", "")
            if os.path.isabs(name) and not name.startswith(self._ours):
                self.noted.append(f"{event} {name}")
        elif event == "open" and isinstance(arguments[0], str | bytes) and not arguments[2] & os.O_NOFOLLOW:
            if os.path.realpath(os.fsdecode(arguments[0])).startswith(tuple(self._outside)):
                self.noted.append(f"{event} {arguments[0]!r}")


class CountingEngine:
    """The real engine; remembers what it was given."""

    def __init__(self, engine: SelectedEngine) -> None:
        self._engine = engine
        self.given: list[tuple[str, str | None]] = []

    def load(self, base: VerifiedBase, adapter: VerifiedAdapter | None) -> ServedModel:
        self.given.append((base.base_id, adapter.version if adapter else None))
        return self._engine.load(base, adapter)


def main() -> None:
    orders = json.loads(Path(sys.argv[1]).read_text())
    settings = load_settings()
    database, artifacts = Database(settings.store_url), open_artifacts(settings)
    engine = CountingEngine(SelectedEngine(settings))
    activation = Activation(database, utc_now, artifacts, engine, settings.poll_interval)
    updater = Updater(database, settings, utc_now, artifacts)
    watch = Watch(Path(orders["outside"]), set(orders["ports"]))

    good = activation.refresh()  # loads the libraries, too
    assert good.degraded is None, good
    assert good.base_id is not None
    updater.rehearse(Range(0, 0))
    watch.watching = True
    results = []
    for case in orders["cases"]:
        before = len(engine.given)
        why = _meet(case, good.base_id, database, activation)
        told = [] if case["room"] == BASES else [_train(updater)]
        with contextlib.suppress(ArtifactError):  # the reader itself, without what stands around it
            if case["room"] == BASES:
                artifacts.open_base(case["id"], case["digest"])
                told.append(None)
        given = [identity for identity in engine.given[before:] if case["id"] in identity]
        results.append({"name": case["name"], "why": why, "given": given, "updater": told})
    _back(database, good.base_id, activation)
    watch.watching = False
    noted = list(watch.noted)
    report = {"results": results, "noted": noted, "control": _on_purpose(watch, Path(orders["outside"]))}
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()
    activation.stop()


def _meet(case: dict[str, str], base_id: str, database: Database, activation: Activation) -> str | None:
    """Register the case as somebody in the store would, point at it, and say why it does not serve (None: it does)."""
    if case["room"] == BASES:
        registry.register_base(database, utc_now, NewBase(case["id"], case["digest"], TRAINED))
        registry.activate_base(database, utc_now, case["id"], actor="somebody")
    else:
        _back(database, base_id, activation)
        new = NewAdapter(case["id"], base_id, case["digest"], "peso", trained_through=TRAINED)
        registry.register_adapter(database, utc_now, new, AdapterState.PASSED)
        with database.write() as connection:
            pointer = read_pointer(connection, lock=True)
            registry.promote_in(connection, utc_now, pointer, case["id"], MoveRequest("somebody"))
    status = activation.refresh()
    return status.degraded if case["id"] not in (status.base_id, status.adapter_version) else None


def _train(updater: Updater) -> str | None:
    """Why the updater does not train from the pointer's adapter, None if it would."""
    try:
        updater.rehearse(Range(0, 0))
    except ArtifactError as error:
        return error.detail
    return None


def _back(database: Database, base_id: str, activation: Activation) -> None:
    with database.read() as connection:
        if read_pointer(connection).base_id != base_id:
            connection.rollback()
    registry.activate_base(database, utc_now, base_id, actor="somebody")
    activation.refresh()


def _on_purpose(watch: Watch, outside: Path) -> list[str]:
    """What is noted of a pickle, a foreign file, a connection and code: that the hook would have seen them."""
    watch.noted.clear()
    (outside / "code.py").write_text("x = 1")
    bomb = (outside / "control.pickle").read_bytes()
    code = compile("x = 1", str(outside / "code.py"), "exec")
    watch.watching = True
    with contextlib.suppress(OSError):
        pickle.loads(bomb)  # noqa: S301  # it makes a folder that is there
    (outside / "secret.json").read_text()
    with contextlib.suppress(OSError), socket.socket() as one:
        one.connect(("127.0.0.1", 1))
    exec(code, {})  # noqa: S102  # nothing but an assignment
    watch.watching = False
    return sorted({noted.split()[0] for noted in watch.noted})


if __name__ == "__main__":
    main()
