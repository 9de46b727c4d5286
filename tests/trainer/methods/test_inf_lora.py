"""InfLoRA: where A comes from, what the memory keeps, and what that protects."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.models import tiny_backbone
from tests.trainer.methods.windows import (
    CODES,
    RANK,
    chain,
    own_tensors,
    settings,
    window,
    wrapped,
)
from trainer.covariance import input_covariance
from trainer.examples import UserStream, build_examples
from trainer.learn import adapt
from trainer.lora import LoraBackbone
from trainer.methods import make_method
from trainer.methods.base import Adapter, Stage
from trainer.methods.inf_lora import FIRST_ENERGY, LAST_ENERGY, WINDOWS, Memory, _recall, extend

NAMES = [f"inf-lora-{scope}{inherit}" for scope in ("all", "latest") for inherit in ("", "-inherit")]
Matrix = NDArray[np.float64]


def energy(t: int) -> float:
    """eps_t of METHODS.md; t counts windows from 1."""
    return FIRST_ENERGY + (LAST_ENERGY - FIRST_ENERGY) * min(t - 1, WINDOWS - 1) / WINDOWS


def begun(name: str, number: int, incumbent: Adapter | None) -> tuple[LoraBackbone, Stage]:
    chosen = settings(method=name)
    method = make_method(chosen)
    lora = wrapped(tiny_backbone(), method, incumbent, chosen)
    stage = method.begin(lora, incumbent, lambda: input_covariance(lora, window(number).training, CODES))
    return lora, stage


def memories(adapter: Adapter) -> dict[str, Memory]:
    found = {key.removeprefix("memory/"): t.double() for key, t in adapter.state.items() if key.startswith("memory/")}
    return {module: Memory(basis, bool(adapter.state[f"free/{module}"])) for module, basis in found.items()}


def trained_covariance(adapter: Adapter, number: int) -> dict[str, Tensor]:
    """H of a window under the model that was trained on it."""
    lora = LoraBackbone(tiny_backbone(), rank=adapter.rank, alpha=adapter.scale * adapter.rank, dropout=0.0, seed=0)
    lora.load(adapter.tensors)
    return input_covariance(lora, window(number).training, CODES)


# A


def test_the_first_a_is_the_leading_directions_of_the_inputs_over_root_three() -> None:
    lora, _ = begun("inf-lora-all", 1, None)
    bare = LoraBackbone(tiny_backbone(), rank=RANK, alpha=2 * RANK, dropout=0.0, seed=0)

    for module, h in input_covariance(bare, window(1).training, CODES).items():
        values, vectors = np.linalg.eigh(h.numpy())
        leading = vectors[:, np.argsort(values)[::-1][:RANK]]
        a = lora.parameters[f"{module}.lora_A.weight"].detach().double().numpy()
        np.testing.assert_allclose(np.abs(np.sqrt(3) * a @ leading), np.eye(RANK), atol=1e-4)  # up to each sign


@pytest.mark.parametrize("name", NAMES)
def test_a_is_orthonormal_over_root_three_and_is_not_trained(name: str) -> None:
    for trained in chain(name):
        own = own_tensors(trained.adapter)
        for key, start in trained.started.items():
            if ".lora_A." in key:
                assert torch.equal(own[key], start)
                gram = own[key] @ own[key].T
                some = torch.count_nonzero(gram.diagonal())  # where fewer directions than ranks are left, the rest is 0
                torch.testing.assert_close(gram, torch.diag(torch.arange(RANK) < some) / 3, atol=1e-5, rtol=1e-4)


def test_only_b_is_given_to_the_optimiser() -> None:
    lora, stage = begun("inf-lora-all", 2, chain("inf-lora-all")[0].adapter)

    b = {id(p) for name, p in lora.parameters.items() if ".lora_B." in name}
    assert {id(p) for p in stage.parameters} == b
    assert not any(p.requires_grad for name, p in lora.parameters.items() if ".lora_A." in name)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_a_lies_outside_of_what_the_first_window_used(name: str) -> None:
    first, second, _ = chain(name)
    kept = memories(first.adapter)

    for module, memory in kept.items():
        a = second.started[f"{module}.lora_A.weight"].double()
        used = a @ memory.basis @ memory.basis.T
        torch.testing.assert_close(used, a if memory.free else torch.zeros_like(a), atol=1e-5, rtol=1e-4)


def test_a_window_of_one_user_that_comes_again_takes_no_direction_in_use() -> None:
    """All of its few inputs are in use: what float32 lost of the memory is no direction to learn in."""
    chosen = settings(method="inf-lora-all", lora_rank=16, lora_alpha=32)
    method = make_method(chosen)
    walk = UserStream("u", np.zeros(0, np.int64), np.arange(7))
    examples = build_examples([walk], history_items=10, min_events=3)
    first, _ = adapt(tiny_backbone(), None, method, examples, CODES, chosen)
    assert first is not None
    kept = memories(first)
    lora = wrapped(tiny_backbone(), method, first, chosen)

    method.begin(lora, first, lambda: input_covariance(lora, examples.training, CODES))

    for module, memory in kept.items():
        a = lora.parameters[f"{module}.lora_A.weight"].detach().double()
        used = a @ memory.basis
        used = a - used @ memory.basis.T if memory.free else used
        assert float(used.norm(dim=1).max()) < 0.05


def test_a_memory_is_taken_to_where_the_model_computes() -> None:
    _, kept = _recall(chain("inf-lora-all")[0].adapter.state, torch.device("meta"))
    assert {memory.basis.device.type for memory in kept.values()} == {"meta"}


def test_a_second_a_is_the_leading_unused_directions_of_the_new_inputs() -> None:
    first, second, _ = chain("inf-lora-all")
    new_inputs = trained_covariance(first.adapter, 2)  # of the new window, under the model that serves

    for module, memory in memories(first.adapter).items():
        projector = memory.basis @ memory.basis.T
        unused = projector if memory.free else torch.eye(len(projector), dtype=torch.float64) - projector
        values, vectors = torch.linalg.eigh(unused @ new_inputs[module] @ new_inputs[module].T @ unused)
        leading = vectors[:, values.argsort(descending=True)[:RANK]]
        a = second.started[f"{module}.lora_A.weight"].double()
        # The same subspace; single directions of nearly equal energy may be turned within it.
        torch.testing.assert_close(3 * a.T @ a, leading @ leading.T, atol=1e-3, rtol=0)


def test_what_a_window_learns_hardly_touches_what_the_first_one_saw() -> None:
    """However large B_2 becomes: what reaches it of the first window's inputs is what the memory left out."""
    first, second, _ = chain("inf-lora-all")

    for module, h in trained_covariance(first.adapter, 1).items():
        a = own_tensors(second.adapter)[f"{module}.lora_A.weight"].double()
        own = own_tensors(first.adapter)[f"{module}.lora_A.weight"].double()
        reaching, usual = torch.linalg.matrix_norm(a @ h), torch.linalg.matrix_norm(own @ h)
        left_out = torch.linalg.matrix_norm(h) * (1 - energy(1)) ** 0.5 / 3**0.5
        assert reaching <= left_out + 1e-5 * usual
        assert reaching < 0.25 * usual


# The memory


def test_after_each_window_the_memory_holds_the_wanted_energy_of_it() -> None:
    for t, trained in enumerate(chain("inf-lora-all"), start=1):
        kept = memories(trained.adapter)
        for module, h in trained_covariance(trained.adapter, t).items():
            memory, total = kept[module], float((h**2).sum())
            outside = float((memory.unused(h) ** 2).sum())
            assert outside <= (1 - energy(t)) * total * (1 + 1e-4) + 1e-9 * total
            gram = memory.basis.T @ memory.basis
            torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), atol=1e-5, rtol=0)
            assert memory.basis.shape[1] <= len(h) / 2


def plain_extend(memory: Memory | None, h: Matrix, eps: float) -> Memory:
    """METHODS.md's rules, one direction at a time."""
    total = (np.linalg.svd(h)[1] ** 2).sum()
    d = len(h)
    if memory is None:
        u, s, _ = np.linalg.svd(h)
        k, held = 0, 0.0
        while k < d and (k == 0 or held < eps):
            held += s[k] ** 2 / total
            k += 1
        basis, free = u[:, :k], False
    else:
        m, free = memory.basis.numpy(), memory.free
        rest = m @ m.T @ h if free else h - m @ m.T @ h
        u, s, _ = np.linalg.svd(rest)
        outside, k = (s**2).sum() / total, 0
        if free:
            while k < m.shape[1] and outside >= 1 - eps:
                outside -= s[k] ** 2 / total
                k += 1
            basis = m
            if k:
                basis = np.linalg.svd(m - u[:, :k] @ u[:, :k].T @ m)[0][:, : m.shape[1] - k]
        else:
            held = 1 - outside
            while k < d and held < eps:
                held += s[k] ** 2 / total
                k += 1
            basis = np.concatenate([m, u[:, :k]], axis=1)[:, :d]
    if not free and basis.shape[1] > d / 2:
        basis, free = np.linalg.svd(basis)[0][:, basis.shape[1] :], True
    return Memory(torch.from_numpy(basis.copy()), free)


def inputs(seed: int, scales: list[float]) -> Tensor:
    """The covariance of random inputs with these scales along random directions."""
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(random.normal(size=(len(scales), len(scales))))[0]
    x = random.normal(size=(50, len(scales))) * np.array(scales) @ directions.T
    return torch.from_numpy(x.T @ x / 50)


@pytest.mark.parametrize("seed", range(4))
def test_the_memory_grows_switches_and_shrinks_as_the_plain_rules_say(seed: int) -> None:
    ours: Memory | None = None
    plain: Memory | None = None
    sizes = []
    for t in range(1, 6):
        h = inputs(10 * seed + t, [4, 3, 0.6, 0.5, 0.4, 0.2, 0.1, 0.05])
        ours, plain = extend(ours, h, 0.9), plain_extend(plain, h.numpy(), 0.9)
        assert (ours.free, ours.basis.shape) == (plain.free, plain.basis.shape)
        torch.testing.assert_close(ours.basis @ ours.basis.T, plain.basis @ plain.basis.T, atol=1e-8, rtol=0)
        sizes.append((ours.free, ours.basis.shape[1]))
    assert sizes[0][0] is False  # small at first
    assert sizes[-1][0] is True  # and at last more is in use than is left


def test_a_window_like_the_one_before_leaves_the_memory_as_it_was() -> None:
    h = inputs(0, [4, 3, 0.6, 0.5, 0.4, 0.2, 0.1, 0.05])
    once = extend(None, h, 0.9)

    again = extend(once, h, 0.9)

    assert torch.equal(again.basis, once.basis)


def test_the_memory_by_hand() -> None:
    """H = diag(3, 2, 1, 0): squares 9, 4, 1 of 14. Nine tenths of that need the first two directions."""
    first = extend(None, torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)), 0.9)
    assert (first.free, first.basis.shape) == (False, (4, 2))
    assert first.basis.abs().tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]

    # New inputs along the third direction only: three of four in use, so what is left is kept instead.
    second = extend(first, torch.diag(torch.tensor([0.0, 0.0, 5.0, 1.0], dtype=torch.float64)), 0.9)
    assert (second.free, second.basis.shape) == (True, (4, 1))
    torch.testing.assert_close(second.basis.abs().flatten(), torch.tensor([0, 0, 0, 1], dtype=torch.float64))

    # And once the fourth is used too, nothing is left.
    third = extend(second, torch.diag(torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)), 0.9)
    assert (third.free, third.basis.shape) == (True, (4, 0))


def test_inputs_that_are_all_zero_make_no_nan() -> None:
    nothing = torch.zeros(4, 4, dtype=torch.float64)

    memory = extend(None, nothing, 0.9)

    assert bool(memory.basis.isfinite().all())
    assert bool(extend(memory, nothing, 0.9).basis.isfinite().all())
