"""What the demo starts and stands on: its own folder and store, and the processes of the real commands."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.access.schemas import Scope
from service.access.service import AccessService
from service.cli import bind
from service.errors import ConfigurationError, Unavailable
from service.kit import migrate
from service.kit.clock import utc_now
from service.kit.db import Database
from service.kit.files import locked
from service.settings import PREFIX

HOST = "127.0.0.1"


@dataclass(slots=True)
class Child:
    """A process that the demo started and will end."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def require_alive(self) -> None:
        """Raises Unavailable with the end of its log when it has ended."""
        if self.process.poll() is not None:
            raise Unavailable(f"{self.name} ended with status {self.process.returncode}; {tail(self.log)}")

    def peak_mib(self) -> float | None:
        """Its largest resident memory so far, where the system tells."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return None
        found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return round(int(found[0]) / 1024, 1) if found else None

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def start_command(stack: ExitStack, state: Path, name: str, *arguments: str, **settings: str) -> Child:
    """`adaptide` with `arguments` and `settings`, ended with `stack`; it logs to a file in `state`."""
    log = state / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  # our own command
            [sys.executable, "-m", "trainer.cli", *arguments],
            env=environment(state) | {PREFIX + setting: value for setting, value in settings.items()},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C goes to the demo, which then ends its children in order
        )
    child = Child(name, process, log)
    stack.callback(child.stop)
    return child


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """The demo's folder, emptied, for one demo at a time."""
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / "lock"))
        except BlockingIOError:
            raise ConfigurationError(
                f"another demo runs in {folder}: stop it, or give this one its own ADAPTIDE_HOME"
            ) from None
        except OSError as error:
            raise ConfigurationError(f"{folder} cannot be used: {error}; set ADAPTIDE_HOME") from error
        state = folder / "state"
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
        yield state


def prepare_store(state: Path, url: str = "") -> str:
    """Migrate an empty store, SQLite in `state` without a URL; returns a key that may do everything."""
    database = Database(url or f"sqlite:///{state / 'adaptide.db'}")
    try:
        migrate.upgrade(database)
        created = AccessService(database, utc_now).create(
            "demo", frozenset({Scope.ADMIN}), actor="cli", expires_in=None
        )
        return created.token
    finally:
        database.close()


def environment(state: Path) -> dict[str, str]:
    """The user's settings, with home, store and artifacts of the demo's own."""
    own = {
        "HOME": str(state),
        "DATABASE_URL": "",
        "REDIS_URL": "",
        "ARTIFACTS_URL": "",
        "ENVIRONMENT": "development",
    }
    return os.environ | {PREFIX + name: value for name, value in own.items()}


def free_port(port: int) -> int:
    """The port, or a free one for 0. Raises ConfigurationError when it is in use."""
    with bind(HOST, port) as listener:
        found: int = listener.getsockname()[1]
    return found


def tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-5:]
    return f"the end of {log}: " + " | ".join(lines)
