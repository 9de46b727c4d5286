"""`mutmut results --all true | python -m tests.mutation 0.9`: killed mutants by module, as a table.

Fails when the share of any of the four parts is below what is asked. One that only ran out of time counts as killed:
each has many times its tests' time.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable

PARTS = {
    "states": ("service.adapters.states", "service.windows.states"),
    "verify": tuple(
        f"service.adapters.{name}"
        for name in ("contents", "folder", "integrity", "lora", "manifest", "signatures", "tensors")
    ),
    "keys": ("service.access.service", "service.kit.keys"),
    "windows": ("service.windows.sealing", "service.windows.service"),
}
KILLED = ("killed", "timeout")


def counted(lines: Iterable[str]) -> dict[str, Counter[str]]:
    """module -> status -> how many, from lines of the form `    module.function__mutmut_1: status`."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for line in lines:
        name, colon, status = line.strip().partition(": ")
        if colon and "__mutmut_" in name:
            found[name.rpartition(".")[0]][status] += 1
    return found


def share(counts: Counter[str]) -> float:
    return sum(counts[status] for status in KILLED) / counts.total() if counts else 0.0


def table(found: dict[str, Counter[str]]) -> str:
    rows = ["| part | module | mutants | killed | share |", "|---|---|---:|---:|---:|"]
    for part, modules in PARTS.items():
        for name in (*modules, ""):
            counts = found[name] if name else sum((found[module] for module in modules), Counter())
            killed = sum(counts[status] for status in KILLED)
            rows.append(f"| {part} | {name or 'all'} | {counts.total()} | {killed} | {share(counts):.1%} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    found = counted(sys.stdin)
    sys.stdout.write(table(found))
    least = min(share(sum((found[module] for module in modules), Counter())) for modules in PARTS.values())
    sys.exit(f"{least:.1%} of a part are killed" if least < float(sys.argv[1]) else 0)
