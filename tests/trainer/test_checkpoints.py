"""A training that goes on from its checkpoint comes to the same bits; what is no checkpoint of it is left alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from service.settings import Settings
from tests.trainer import ranks
from tests.trainer.methods.windows import train
from trainer.checkpoints import Checkpoints, kept_training
from trainer.examples import Case, TrainingSequence
from trainer.group import ALONE, Group
from trainer.methods.base import Adapter
from trainer.resume import circumstances

torch.set_num_threads(1)  # with more, sums of the same numbers come out in another order from time to time

DROPPING: dict[str, Any] = {"embedding_dropout": 0.2, "residual_dropout": 0.1}


def stop_at(step: int) -> Callable[[int, int], None]:
    def on_step(done: int, total: int) -> None:
        if done == step:
            raise ranks.Interrupted

    return on_step


def learnt(kept: Checkpoints, stop: int = 0) -> ranks.Outcome:
    return ranks.learnt("sd-lora", None, kept=kept, on_step=stop_at(stop), **DROPPING)


def interrupted(folder: Path, subject: str = "window 2", stop: int = 6) -> Checkpoints:
    """Checkpoints of a training that ended while it did step `stop`."""
    kept = Checkpoints(folder, subject, 0.0).keyed("contents")
    with pytest.raises(ranks.Interrupted):
        learnt(kept, stop)
    return kept


def written(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("manifest.json"))


def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    previous: Adapter = train("peso", 1, None).adapter

    def learn(**more: Any) -> ranks.Outcome:
        return ranks.learnt("peso", previous, **DROPPING, **more)

    (tensors, report), (wanted, wanted_report), begun = ranks.resumed(learn, tmp_path, ALONE)
    assert begun == [1, 7, 14]
    assert report == wanted_report
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in tensors.items())


def test_the_disk_holds_the_newest_step_only(tmp_path: Path) -> None:
    kept = interrupted(tmp_path, stop=6)
    assert [path.name for path in written(tmp_path)] == ["0000000005"]
    assert len(list(tmp_path.glob("*/*"))) == 1
    kept.clear()
    assert not tmp_path.exists()


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_told_of_and_training_begins_anew(tmp_path: Path, name: str) -> None:
    kept = interrupted(tmp_path)
    file = written(tmp_path)[0] / name
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])

    with capture_logs() as logs:
        assert kept.load(ALONE) is None
    assert [line["event"] for line in logs] == ["checkpoint_ignored"]
    assert not written(tmp_path)


def test_a_flipped_bit_is_damage(tmp_path: Path) -> None:
    kept = interrupted(tmp_path)
    file = written(tmp_path)[0] / "state.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert kept.load(ALONE) is None


def test_a_checkpoint_of_another_training_is_not_taken_up_and_goes(tmp_path: Path) -> None:
    interrupted(tmp_path, "window 1")
    kept = Checkpoints(tmp_path, "window 2", 0.0).keyed("contents")
    assert kept.load(ALONE) is None
    assert not written(tmp_path)


def test_keys_tell_trainings_apart_by_everything_that_decides_them(tmp_path: Path) -> None:
    kept, rows = Checkpoints(tmp_path, "window 2", 0.0), torch.arange(4.0)
    contents: list[object] = [
        rows,
        rows.double(),
        rows.reshape(2, 2),
        rows + 1,
        {"a": rows},
        {"b": rows},
        [rows[:2], rows[2:]],
        [[rows[:2]], rows[2:]],
        ["ab"],
        ["a", "b"],
        None,
        (),
    ]
    keys = [kept.keyed(part).key for part in contents] + [Checkpoints(tmp_path, "window 3", 0.0).keyed(rows).key]
    assert len(set(keys)) == len(keys)
    assert kept.keyed(rows.clone()).key == keys[0]
    assert kept.keyed(1).keyed(2).key != kept.keyed(2).keyed(1).key


def test_a_training_begun_elsewhere_or_over_other_data_is_another_one(tmp_path: Path) -> None:
    kept, codes, rows = Checkpoints(tmp_path, "window 2", 0.0), np.eye(3, 4, dtype=np.int16), np.array([0, 1])
    cpu, sequences, cases = torch.device("cpu"), [TrainingSequence(rows, 1)], [Case("u", rows, 2, rows)]
    told = [
        (sequences, cases, codes, "config", cpu, ALONE),
        (sequences * 2, cases, codes, "config", cpu, ALONE),
        ([TrainingSequence(rows, 0)], cases, codes, "config", cpu, ALONE),
        (sequences, [Case("u", rows, 1, rows)], codes, "config", cpu, ALONE),
        (sequences, cases, codes + np.int16(1), "config", cpu, ALONE),
        (sequences, cases, codes, "other", cpu, ALONE),
        (sequences, cases, codes, "config", torch.device("cuda"), ALONE),
        (sequences, cases, codes, "config", cpu, Group(0, 2, cpu)),
    ]
    keys = [kept.keyed(circumstances(*one)).key for one in told]
    assert len(set(keys)) == len(keys)
    assert kept.keyed(circumstances(*told[0])).key == keys[0]


def test_a_disk_that_takes_nothing_does_not_stop_the_training(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("a file where a folder should be")
    with capture_logs() as logs:
        tensors, _ = learnt(Checkpoints(tmp_path / "full", "window 2", 0.0).keyed("contents"))
    assert {line["event"] for line in logs} == {"checkpoint_not_written"}
    wanted, _ = ranks.learnt("sd-lora", None, **DROPPING)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in tensors.items())


def test_an_interval_of_nothing_keeps_nothing() -> None:
    assert kept_training(Settings(home=Path("unused"), checkpoint_interval=0), "window", "it") is None
