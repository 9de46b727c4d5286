"""The updater under each family of methods: two windows, the state in the artifact, and changes of method between."""

from pathlib import Path

import pytest

from service.adapters import repository as adapter_rows
from service.adapters import service as adapters
from service.adapters.artifacts import ArtifactStore, VerifiedAdapter
from service.kit.db import Database
from service.settings import Settings
from service.windows.repository import Window
from service.windows.states import WindowState
from tests import worlds
from tests.built import BuiltWorld
from tests.conftest import SetClock
from trainer.base import BuiltBase
from trainer.updater import Updater

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the dialect plays no part


class Desk:
    """A store with the small world and its base, in which windows are brought to their outcome by any method."""

    def __init__(self, database: Database, settings: Settings, clock: SetClock, built: BuiltBase) -> None:
        self.database, self.settings, self.clock, self.built = database, settings, clock, built
        self.artifacts = ArtifactStore(settings.artifacts_dir)
        self._sent = 0

    def window(self, method: str, **changes: object) -> Window:
        """What came of one more window of walks."""
        self._sent += 1
        worlds.send(self.database, self.clock, worlds.later_walks(self._sent))
        settings = self.settings.model_copy(update={"method": method, **changes})
        window = Updater(self.database, settings, self.clock, self.artifacts).tick()
        assert window is not None
        return window

    def adapter(self, version: str | None) -> VerifiedAdapter:
        """As a replica opens it."""
        assert version is not None
        row = adapters.read_adapter(self.database, version).adapter
        with self.database.read() as connection:
            base = adapter_rows.find_base(connection, row.base_id)
        assert base is not None
        opened = self.artifacts.open_base(base.base_id, base.digest)
        return self.artifacts.open_adapter(version, row.digest, opened)

    def serving(self) -> str | None:
        return adapters.read_registry(self.database).pointer.adapter_version


@pytest.fixture
def desk(database: Database, database_url: str, clock: SetClock, built_world: BuiltWorld, tmp_path: Path) -> Desk:
    settings = Settings(
        home=tmp_path / "home",
        database_url=database_url,
        learning_rate_update=1e-2,
        lora_rank=8,
        lora_alpha=16,
        update_epochs=2,
        update_min_steps=0,
        update_batch_size=32,
        evaluation_items_per_user=2,
        embedding_dropout=0.0,
        residual_dropout=0.0,
        window_max_events=6 * worlds.USERS,
        window_min_events=5,
        gate_tolerance=1.0,  # what is asked here is that the way is open to the end, not how well two epochs learn
    )
    return Desk(database, settings, clock, built_world.copy_into(database, settings.artifacts_dir))


def rank(adapter: VerifiedAdapter) -> int:
    return int(adapter.config["r"])


@pytest.mark.parametrize(
    ("method", "held"),
    [
        ("sum-lora-all-inherit", (1, 2)),
        ("sd-lora-latest", (1, 2)),
        ("inf-lora-all", (1, 2)),
        ("l2", (1, 1)),
        ("output-kl", (1, 1)),
    ],
)
def test_two_windows_are_learnt_one_from_the_other(desk: Desk, method: str, held: tuple[int, int]) -> None:
    """The base's first adapter, which changes nothing, is no past one of a cumulative method, as in a backtest."""
    one = rank(desk.adapter(desk.serving()))
    first, second = desk.window(method), desk.window(method)

    for window, count in zip((first, second), held, strict=True):
        assert (window.verdict, window.reason, window.method) == (WindowState.PROMOTED, None, method)
        assert rank(desk.adapter(window.candidate_version)) == count * one
    assert second.incumbent_version == first.candidate_version
    assert desk.serving() == second.candidate_version


@pytest.mark.parametrize("method", ["sum-lora-all-inherit", "sd-lora-latest", "inf-lora-all", "single-evolving"])
def test_the_state_is_in_the_published_artifact(desk: Desk, method: str) -> None:
    desk.window(method)
    window = desk.window(method)

    adapter = desk.adapter(window.candidate_version)
    state = desk.artifacts.read_state(adapter)

    assert (adapter.path / "method_state.safetensors").exists() is bool(state)
    past = {key.split("/")[0] for key in state if key.startswith("adapter.")}
    expected = {"sum-lora-all-inherit": 2, "sd-lora-latest": 1, "inf-lora-all": 2, "single-evolving": 0}
    assert len(past) == expected[method]
    if method == "inf-lora-all":
        assert state["windows"].tolist() == [2]


def test_a_candidate_that_does_worse_is_refused_with_the_reason_and_its_state_is_not_stood_on(desk: Desk) -> None:
    first = desk.window("sum-lora-all", gate_min_users=worlds.USERS + 1)
    second = desk.window("sum-lora-all")

    assert (first.verdict, first.reason) == (WindowState.REFUSED, "too_few_users")
    assert second.incumbent_version == desk.built.adapter_version
    assert rank(desk.adapter(second.candidate_version)) == rank(desk.adapter(first.candidate_version))


@pytest.mark.parametrize("cumulative", ["sum-lora-all", "sd-lora-latest-inherit", "inf-lora-all"])
def test_the_method_can_be_changed_between_windows_and_back(desk: Desk, cumulative: str) -> None:
    one = rank(desk.adapter(desk.serving()))

    methods = ("single-evolving", cumulative, "single-evolving")
    found = [desk.window(method, learning_rate_update=3e-3) for method in methods]

    assert [window.verdict for window in found] == [WindowState.PROMOTED] * 3
    ranks = [rank(desk.adapter(window.candidate_version)) for window in found]
    assert ranks == [one, 2 * one, 2 * one]  # what was stacked is evolved as one
    assert not desk.artifacts.read_state(desk.adapter(found[-1].candidate_version))
    assert [window.incumbent_version for window in found] == [
        desk.built.adapter_version,
        *(window.candidate_version for window in found[:-1]),
    ]


def test_pretrain_ends_every_window_with_no_change(desk: Desk) -> None:
    found = [desk.window("pretrain"), desk.window("pretrain")]

    assert [window.verdict for window in found] == [WindowState.NO_CHANGE] * 2
    assert desk.serving() == desk.built.adapter_version
    assert {e.subject for e in found[0].evaluations} == {"incumbent", "base", "popularity"}


@pytest.mark.parametrize("relative", [True, False])
def test_the_weight_in_force_is_published_with_the_adapter(desk: Desk, relative: bool) -> None:
    window = desk.window("peso", proximal_weight=0.05, proximal_relative=relative)

    adapter = adapters.read_adapter(desk.database, window.candidate_version or "").adapter
    weight = adapter.hyperparameters["proximal_weight"]

    assert (window.statistics or {})["penalty_weight"] == weight
    assert weight > 1 if relative else weight == 0.05
