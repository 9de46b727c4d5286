"""Whatever admins, windows and damage do in whatever order: trial and pointer never contradict each other."""

import random
from datetime import timedelta

import pytest

from service.adapters import repository as adapter_rows
from service.adapters import service as adapters
from service.adapters.integrity import mark_corrupt
from service.adapters.moves import MoveRequest
from service.adapters.states import PROMOTABLE
from service.errors import Conflict
from service.trials import service as trials
from service.trials.repository import TrialRow
from service.trials.service import Wanted
from service.trials.states import Deed, Kind, over
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock

STEPS = 40


class Walk:
    """Random deeds over two bases with three adapters each."""

    def __init__(self, shelf: Shelf, clock: SetClock, seed: int) -> None:
        self.shelf, self.clock, self.random = shelf, clock, random.Random(seed)
        self.bases = [shelf.active_base(), shelf.base(0.7)]
        self.versions = [shelf.adapter(base, 0.1 * value) for base in self.bases for value in (1, 2, 3)]
        self.seen: list[TrialRow] = []

    def step(self) -> None:
        version = self.random.choice(self.versions)
        database, clock, artifacts, who = self.shelf.database, self.clock, self.shelf.artifacts, MoveRequest("key:w")
        deed = self.random.choice(
            ["run", "run", "change", "change", "end", "promote", "roll back", "damage", "base", "wait"]
        )
        if deed == "change" and (present := trials.read(database).trial) is not None:
            version = present.adapter_version
        if deed in ("run", "change"):
            kind, share = self.random.choice(list(Kind)), self.random.choice([0.1, 0.5])
            ends_at = self.random.choice([None, clock() + timedelta(minutes=90)])
            trials.run(database, clock, artifacts, Wanted(version, kind, share, ends_at), who)
        elif deed == "end":
            trials.end(database, clock, who)
        elif deed == "promote":
            adapters.promote(database, clock, artifacts, version, who)
        elif deed == "roll back":
            adapters.rollback(database, clock, artifacts, who)
        elif deed == "damage":
            mark_corrupt(database, clock, version, "a bit flipped", actor="test")
        elif deed == "base":
            adapters.activate_base(database, clock, self.random.choice(self.bases), actor="test")
        else:
            clock.advance(hours=1)
            trials.end_if_over(database, clock)

    def check(self) -> None:
        found = trials.read(self.shelf.database)
        for row in reversed(found.history):
            if row.revision > len(self.seen):
                self.seen.append(row)
            assert self.seen[row.revision - 1] == row  # what was written stays as it was
        assert [row.revision for row in self.seen] == list(range(1, len(self.seen) + 1))
        for before, after in zip([None, *self.seen], self.seen, strict=False):
            running = before is not None and before.deed is not Deed.END
            assert (after.deed is Deed.START) != running
            if running and before is not None:
                assert (after.adapter_version, after.salt) == (before.adapter_version, before.salt)
        if found.trial is None:
            return
        with self.shelf.database.read() as connection:
            pointer = adapter_rows.read_pointer(connection)
            candidate = adapter_rows.find_adapter(connection, found.trial.adapter_version)
        assert candidate is not None
        assert candidate.state in PROMOTABLE
        assert over(found.trial, pointer, candidate.state, found.trial.started_at) is None


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_trial_and_pointer_agree_after_every_step(shelf: Shelf, clock: SetClock, seed: int) -> None:
    walk = Walk(shelf, clock, seed)
    refused = 0
    for _ in range(STEPS):
        try:
            walk.step()
        except Conflict:
            refused += 1
        walk.check()
    assert 0 < refused < STEPS
    assert {row.deed for row in walk.seen} == set(Deed)
