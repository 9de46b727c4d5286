"""What tells that an update takes too much; test_updater.py and test_together.py have what comes of it."""

from collections.abc import Callable
from datetime import timedelta

import pytest
import torch

from trainer.limits import MIB, Limits, out_of_memory, resident, why

TOO_MUCH = 2**60


def of_torch() -> object:
    return torch.empty(TOO_MUCH, dtype=torch.uint8)


def of_python() -> object:
    return bytearray(TOO_MUCH)


def raised(allocate: Callable[[], object]) -> BaseException:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    return caught.value


@pytest.mark.parametrize("allocate", [of_torch, of_python])
def test_memory_that_ran_out_is_told_from_other_failures(allocate: Callable[[], object]) -> None:
    error = raised(allocate)
    assert out_of_memory(error)
    assert "ran out of memory" in why(error)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert why(RuntimeError("shapes do not match")) == "RuntimeError: shapes do not match"
    assert why(ValueError()) == "ValueError"


def test_without_limits_nothing_is_too_much() -> None:
    Limits(None, 0).check()
    Limits(timedelta(hours=1), 2**60).check()
    assert resident() > 10 * MIB
