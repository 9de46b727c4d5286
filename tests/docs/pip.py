"""What a page's `pip` does in the tests: installs nothing, and fails for what this repository does not know.

That what is named installs, `make test-images` holds.
"""

import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

from tests.docs.pages import ROOT


def problems(arguments: list[str]) -> list[str]:
    """What is wrong with `pip install ARGUMENTS`; other commands of pip are fine."""
    if not arguments or arguments[0] != "install":
        return []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    pinned = (ROOT / "constraints.txt").read_text() + "\n".join(chain(*project["optional-dependencies"].values()))
    known = {name.lower() for name in re.findall(r"^([\w.-]+)", pinned, re.MULTILINE)}
    wrong, rest = [], iter(arguments[1:])
    for argument in rest:
        if argument in ("-c", "--constraint"):
            file = next(rest)
            wrong += [] if Path(file).is_file() else [f"there is no {file}"]
        elif not argument.startswith("-"):
            parts = re.fullmatch(r"([\w.-]+)(?:\[([\w,-]+)\])?([=<>].*)?", argument)
            if parts is None or (parts[1] != "." and parts[1].lower() not in known):
                wrong.append(f"{argument} is not known here")
            elif parts[2] and (unknown := set(parts[2].split(",")) - extras):
                wrong.append(f"there is no extra {', '.join(sorted(unknown))}")
    return wrong


if __name__ == "__main__":
    found = problems(sys.argv[1:])
    sys.exit("; ".join(found) if found else 0)
