"""The few instructions of docker/Dockerfile, to be followed on a plain machine."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Stage:
    """steps: COPY and RUN in order, as (instruction, rest). environment: ENV, and ARG with a default."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)

    def words(self, instruction: str) -> list[str]:
        """An instruction in its exec form; of HEALTHCHECK its command."""
        found: list[str] = json.loads(
            self.said[instruction].partition("[")[1] + self.said[instruction].partition("[")[2]
        )
        return found


def stages(path: Path) -> dict[str, Stage]:
    """Stages by name. A stage that builds on another one starts with what that one says."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    arguments: dict[str, str] = {}
    stage: Stage | None = None
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        rest = rest.strip()
        if instruction == "FROM":
            for name, value in arguments.items():
                rest = rest.replace("${" + name + "}", value)
            base, _, name = rest.split()
            before = found.get(base, Stage(base))
            stage = Stage(base, [], dict(before.environment), dict(before.said))
            found[name] = stage
        elif instruction in ("ENV", "ARG"):
            pairs = dict(word.partition("=")[::2] for word in shlex.split(rest))
            (arguments if stage is None else stage.environment).update(pairs)
        elif stage is not None and instruction in ("COPY", "RUN"):
            stage.steps.append((instruction, rest))
        elif stage is not None:
            stage.said[instruction] = rest
    return found
