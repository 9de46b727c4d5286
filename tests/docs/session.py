"""A reader's shell: a throwaway home, the repository's `adaptide`, and ports that nobody else uses.

Commands run as they are written, but for what would take long or leave this machine:

- `adaptide` is this checkout. `base build` and `backtest` get the options of a tiny model; `serve` and `trainer run`
  return once they are ready and are stopped at the end of the page.
- `pip install` checks that what it names is known to pyproject.toml or constraints.txt; `python3 -m venv` makes a
  folder whose bin/ is this one.
- `curl` waits until the service answers, and fails on an error status.
- 127.0.0.1:8000 and 127.0.0.1:8001 are free ports.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.docs.pages import ROOT, Block

_ADAPTIDE = """#!/bin/bash
adaptide=("{python}" -m trainer.cli)
case "$*" in
  serve*|"trainer run"*)
    log="$SESSION/$1.log"
    setsid "${{adaptide[@]}}" "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    echo $pid >>"$SESSION/pids"
    for _ in $(seq 1200); do
      kill -0 $pid 2>/dev/null || {{ cat "$log" >&2; exit 1; }}
      if [ "$1" = serve ]; then
        {curl} --silent --fail "http://127.0.0.1:$ADAPTIDE_PORT/health/ready" >/dev/null && exit 0
      else
        grep -q updater_started "$log" && exit 0
      fi
      sleep 0.1
    done
    cat "$log" >&2; exit 1 ;;
  "base build"*) exec "${{adaptide[@]}}" "$@" --hidden 32 --layers 2 --quantiser rqkmeans --epochs 4 ;;
  "backtest --list-methods"*) exec "${{adaptide[@]}}" "$@" ;;
  backtest*) exec "${{adaptide[@]}}" "$@" --hidden 32 --layers 1 --base-epochs 1 --quantiser rqkmeans --workers 1 \\
    --seeds 1 --methods popularity,peso --ratios "" ;;
  *) exec "${{adaptide[@]}}" "$@" ;;
esac
"""
_CURL = """#!/bin/bash
exec {curl} -sS --fail-with-body --retry 100 --retry-delay 1 --retry-connrefused --retry-max-time 60 "$@"
"""
_PIP = """#!/bin/bash
exec "{python}" -m tests.docs.pip "$@"
"""
_PYTHON = """#!/bin/bash
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3" && ln -sfn "$SESSION/bin" "$3/bin"
else
  exec "{python}" "$@"
fi
"""
_QUICK = {
    "THREADS": "1",
    "LOG_LEVEL": "INFO",
    "TICK_INTERVAL": "0.5",
    "POLL_INTERVAL": "0.5",
    "UPDATE_EPOCHS": "1",
    "UPDATE_MIN_STEPS": "0",
    "DATABASE_ANSWER_TIMEOUT": "10",  # a busy machine's disk
}


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a page's blocks."""

    status: int
    output: str
    last: str
    """The block that was run last: the one that failed, if one did."""


class Session:
    """The shell of one page, in `folder`, which holds `items.csv` and `events.csv` and whose home is `home`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bin = folder / ".session" / "bin"
        self._bin.mkdir(parents=True)
        curl = shutil.which("curl")
        assert curl is not None, "curl is not installed"
        for name, text in {
            "adaptide": _ADAPTIDE,
            "curl": _CURL,
            "pip": _PIP,
            "python": _PYTHON,
            "python3": _PYTHON,
        }.items():
            script = self._bin / name
            script.write_text(text.format(python=sys.executable, curl=curl))
            script.chmod(0o755)
        for name in ("constraints.txt", "pyproject.toml", "docs", "docker"):
            (folder / name).symlink_to(ROOT / name)
        self._port, self._trainer_port = _free_ports(2)

    def run(self, blocks: Sequence[Block], *, timeout: float) -> Ran:
        """The blocks, one after the other, in one shell that ends at the first failure."""
        script = ["set -euo pipefail"]
        all_commands = "\n".join(block.commands for block in blocks)
        if "$KEY" in all_commands and not re.search(r"^\s*(export )?KEY=", all_commands, re.MULTILINE):
            script.append("KEY=$(adaptide keys create --name reader --scope admin 2>/dev/null)")
        serves = False
        names: set[str] = set()
        for block in blocks:
            script.append(f"printf '\\n::: %s\\n' {block.where}")
            commands = block.commands
            starts = re.search(r"^\s*adaptide serve\b", commands, re.MULTILINE) is not None
            if re.search(r"(127\.0\.0\.1|localhost):8000", commands) and not (serves or starts):
                script.append("adaptide serve")
                serves = True
            serves = serves or starts
            names |= set(re.findall(r"^([A-Z_]+)=", block.before, re.MULTILINE))
            for name in names:
                commands = re.sub(rf"(?<![$\w{{]){name}(?![\w=])", f"${{{name}}}", commands)
            script += [self._here(block.before), self._here(commands)]
        script.append("printf '\\n::: %s\\n' end")
        log = self.folder / ".session" / "output"
        with log.open("w") as output:
            try:
                status = subprocess.run(
                    ["bash", "-c", "\n".join(script)],
                    cwd=self.folder,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=timeout,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                status = -1
            finally:
                self._stop()
        text = log.read_text()
        places = re.findall(r"^::: (.*)$", text, re.MULTILINE)
        return Ran(status, text, places[-1] if places else "")

    def logs(self) -> str:
        """What the processes that were left running wrote."""
        return "\n".join(path.read_text() for path in sorted((self.folder / ".session").glob("*.log")))

    def _here(self, commands: str) -> str:
        return re.sub(
            r"(127\.0\.0\.1|localhost):800([01])",
            lambda found: f"{found[1]}:{(self._port, self._trainer_port)[int(found[2])]}",
            commands,
        )

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTIDE_")}
        own = _QUICK | {"PORT": str(self._port), "TRAINER_PORT": str(self._trainer_port)}
        return (
            kept
            | {f"ADAPTIDE_{name}": value for name, value in own.items()}
            | {
                "HOME": str(self.folder),  # so ~/.adaptide is the page's own
                "SESSION": str(self.folder / ".session"),
                "PATH": f"{self._bin}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "MPLCONFIGDIR": os.environ.get(
                    "MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib")
                ),  # a list of fonts
                "COLUMNS": "200",
            }
        )

    def _stop(self) -> None:
        listed = self.folder / ".session" / "pids"
        for pid in map(int, listed.read_text().split()) if listed.exists() else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
                _wait_gone(pid, 60)


def _wait_gone(pid: int, seconds: float) -> None:
    """Raises ProcessLookupError once it is gone; kills it after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        os.kill(pid, 0)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"process {pid} did not stop within {seconds:g} s")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
