"""What the registry promises, as plain values: no store, no files, nothing of the product's own code.

Each method does what the operation of its name promises and raises Refused where that is refused. States are words,
so that a state that the product renames is noticed.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

HAS_SERVED_OR_PASSED = ("passed", "retired")
MAY_SERVE = ("candidate", "passed", "retired")
CAN_BE_DAMAGED = ("candidate", "passed", "active", "retired")


class Refused(Exception):
    """In one word: not_found, conflict, precondition_failed or artifact_refused."""


class Asked(NamedTuple):
    """The conditions of an admin's request."""

    actor: str = "key:a"
    reason: str | None = None
    revision: int | None = None
    key: str | None = None


class Moved(NamedTuple):
    """A row of the history."""

    revision: int
    action: str
    base: str
    left: str | None
    to: str | None
    window: int | None
    actor: str
    reason: str | None
    key: str | None


@dataclass
class Base:
    born: float
    gone: bool = False


@dataclass
class Adapter:
    base: str
    state: str
    born: float


@dataclass
class OpenWindow:
    """A window that is being trained, and what the pointer was when that began."""

    number: int
    base: str
    incumbent: str | None
    revision: int


@dataclass
class RegistryModel:
    """revision, base and version are the pointer; `served` is what can be gone back through, the last one serves."""

    now: float = 0
    revision: int = 0
    base: str | None = None
    version: str | None = None
    served: list[str | None] = field(default_factory=list)
    bases: dict[str, Base] = field(default_factory=dict)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    window: OpenWindow | None = None
    history: list[Moved] = field(default_factory=list)
    audit: list[tuple[str, str]] = field(default_factory=list)
    """(action, subject) of every entry."""
    answered: dict[str, tuple[object, Moved]] = field(default_factory=dict)
    """Key -> the request that it was used for, and what that did."""

    # What an admin does

    def promote(self, version: str, asked: Asked) -> Moved:
        if earlier := self._repeated(("promote", version), asked):
            return earlier
        self.verify(version)
        if self.base is None:
            raise Refused("conflict")
        self._must_be(version, self.base, MAY_SERVE)
        return self._answer(("promote", version), self._move("promote", self.base, version, asked), asked)

    def roll_back(self, to: str | None, asked: Asked) -> Moved:
        if earlier := self._repeated(("rollback", to), asked):
            return earlier
        if self.base is None:
            raise Refused("conflict")
        if to == "base":
            if self.version is None:
                raise Refused("conflict")
            target = None
        elif to is not None:
            self._must_be(to, self.base, HAS_SERVED_OR_PASSED)
            self.verify(to)
            target = to
        else:
            target = self._before()
        return self._answer(("rollback", to), self._move("rollback", self.base, target, asked), asked)

    def activate(self, base: str, version: str | None) -> Moved:
        if base not in self.bases:
            raise Refused("not_found")
        if self.bases[base].gone:
            raise Refused("conflict")
        if version is not None and (base, version) != (self.base, self.version):
            self._must_be(version, base, MAY_SERVE)
        return self._move("base", base, version, Asked(actor="cli"))

    def register(self, version: str, base: str, state: str) -> None:
        if state not in ("candidate", "passed", "refused") or version in self.adapters:
            raise Refused("conflict")
        if base not in self.bases:
            raise Refused("not_found")
        self.adapters[version] = Adapter(base, state, self.now)

    # What is found out about files

    def verify(self, version: str) -> None:
        """What is damaged is marked, what was marked and is whole again is readmitted."""
        if version not in self.adapters:
            raise Refused("not_found")
        adapter = self.adapters[version]
        if adapter.state == "collected":
            raise Refused("conflict")
        if version in self.damaged:
            self.mark(version)
            raise Refused("conflict")
        if adapter.state == "corrupt":
            adapter.state = "active" if version == self.version else "candidate"
            self.audit.append(("adapter.readmit", version))

    def mark(self, version: str) -> None:
        """A replica could not read it."""
        adapter = self.adapters.get(version)
        if adapter is not None and adapter.state in CAN_BE_DAMAGED:
            adapter.state = "corrupt"
            self.audit.append(("adapter.corrupt", version))

    def collect(self, keep: int, grace: float) -> None:
        """Files that nobody needs go, for good."""
        here = {v: a for v, a in self.adapters.items() if a.state != "collected"}
        needed = {self.version} | {v for v, a in here.items() if a.born > self.now - grace}
        back = [v for v in reversed(self.served[:-1]) if v in here and here[v].state in HAS_SERVED_OR_PASSED]
        needed |= set(list(dict.fromkeys(back))[:keep])
        newest = sorted(here, key=lambda v: (here[v].born, v), reverse=True)
        needed |= set([v for v in newest if here[v].state in (*MAY_SERVE, "active")][:keep])
        needed_bases = {self.base} | {b for b, base in self.bases.items() if base.born > self.now - grace}
        if self.window is not None:
            needed.add(self.window.incumbent)
            needed_bases.add(self.window.base)
        needed_bases |= {here[v].base for v in needed if v in here}
        for version in sorted(here.keys() - needed):
            self.adapters[version].state = "collected"
            self.audit.append(("adapter.collect", version))
        for base in sorted(b for b in self.bases if b not in needed_bases and not self.bases[b].gone):
            self.bases[base].gone = True
            self.audit.append(("base.collect", base))

    # What the updater does

    def claim(self, number: int) -> None:
        assert self.base is not None
        self.window = OpenWindow(number, self.base, self.version, self.revision)

    def conclude(self, version: str, *, promoted: bool, compared: bool, damaged: bool) -> Moved | None:
        """The open window's outcome is this candidate. compared: only if the pointer is where it was at the claim."""
        window = self.window
        assert window is not None
        if promoted and damaged:
            raise Refused("artifact_refused")
        moved = None
        if promoted:
            if compared and self.revision != window.revision:
                raise Refused("precondition_failed")
            if self.base != window.base:
                raise Refused("conflict")
        self.register(version, window.base, "passed" if promoted else "refused")
        if promoted:
            assert self.base is not None
            moved = self._move("window", self.base, version, Asked("updater"), window.number)
        self.window = None
        return moved

    # Inside

    def _repeated(self, what: tuple[str, str | None], asked: Asked) -> Moved | None:
        if asked.key is not None and asked.key in self.answered:
            request, moved = self.answered[asked.key]
            if request != (what, asked):
                raise Refused("conflict")
            return moved
        if asked.revision is not None and asked.revision != self.revision:
            raise Refused("precondition_failed")
        return None

    def _answer(self, what: tuple[str, str | None], moved: Moved, asked: Asked) -> Moved:
        if asked.key is not None:
            self.answered[asked.key] = ((what, asked), moved)
        return moved

    def _must_be(self, version: str, base: str, states: tuple[str, ...]) -> None:
        if version not in self.adapters:
            raise Refused("not_found")
        adapter = self.adapters[version]
        if adapter.base != base or adapter.state not in states:
            raise Refused("conflict")

    def _before(self) -> str | None:
        """What an unnamed rollback goes to; what turns out to be damaged on the way is marked."""
        for version in reversed(self.served[:-1]):
            if version == self.version:
                continue
            if version is None:
                return None
            if self.adapters[version].state not in HAS_SERVED_OR_PASSED:
                continue
            try:
                self.verify(version)
            except Refused:
                continue
            return version
        raise Refused("conflict")

    def _move(self, action: str, base: str, to: str | None, asked: Asked, window: int | None = None) -> Moved:
        left = self.version
        if left is not None and left != to and self.adapters[left].state == "active":
            self.adapters[left].state = "retired"
        if to is not None and left != to:
            self.adapters[to].state = "active"
        self.served = after(self.served, action, to)
        self.revision, self.base, self.version = self.revision + 1, base, to
        moved = Moved(self.revision, action, base, left, to, window, asked.actor, asked.reason, asked.key)
        self.history.append(moved)
        self.audit.append((f"adapter.{action}", to or base))
        return moved


def after(served: list[str | None], action: str, to: str | None) -> list[str | None]:
    """What can be gone back through after a move: a base starts anew, a rollback never lets one go forth again."""
    if action == "base":
        return [to]
    if action != "rollback":
        return [*served, to]
    rest = served[:-1]
    while rest and rest[-1] != to:
        rest.pop()
    if rest:
        return rest
    return [None] if to is None else [*served[:-1], to]
