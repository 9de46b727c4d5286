"""The movement of an adapter, on matrices that can be multiplied by hand."""

import numpy as np
import pytest

from service.adapters.lora import PEFT_PREFIX, Dimensions
from service.adapters.movement import Against, Update, measure, place_of

QUERY, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
MODULES = {QUERY: (2, 2), UP: (2, 2)}


def update(scale: float = 1.0, **pairs: tuple[list[list[float]], list[list[float]]]) -> Update:
    names = {"query": QUERY, "up": UP}
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"{PEFT_PREFIX}{names[name]}.lora_A.weight"] = np.array(a, np.float32)
        tensors[f"{PEFT_PREFIX}{names[name]}.lora_B.weight"] = np.array(b, np.float32)
    return Update(tensors, scale)


def test_the_movement_is_the_norm_of_the_difference_by_the_norm_of_the_parents_update() -> None:
    # B A is [[3, 0], [4, 0]] in the parent (norm 5) and [[3, 0], [0, 0]] in the child: the difference has norm 4.
    parent = update(query=([[1, 0]], [[3], [4]]))
    child = update(query=([[1, 0]], [[3], [0]]))
    found = measure(child, parent, Dimensions(MODULES))
    assert found.against is Against.PARENT
    assert found.values == {(0, "self_attn.q_proj"): pytest.approx(0.8)}
    assert (found.layers, found.modules) == ((0,), ("self_attn.q_proj",))


def test_scales_and_ranks_may_differ() -> None:
    # 2 * [[1], [0]] [[1, 0]] against two ranks that make [[1, 0], [0, 1]]: [[2, 0], [0, 0]] - I = diag(1, -1).
    child = update(2.0, query=([[1, 0]], [[1], [0]]))
    parent = update(query=([[1, 0], [0, 1]], [[1, 0], [0, 1]]))
    assert measure(child, parent, Dimensions(MODULES)).highest == pytest.approx(1.0)


def test_an_adapter_that_is_its_parent_has_not_moved() -> None:
    one = update(query=([[0.3, -0.7]], [[1.5], [2.5]]))
    assert measure(one, one, Dimensions(MODULES)).highest < 1e-7


def test_without_a_parent_it_is_measured_against_the_weights_of_the_base() -> None:
    first = update(up=([[1, 0]], [[3], [4]]))
    found = measure(first, None, Dimensions(MODULES, norms={UP: 50.0}))
    assert found.against is Against.BASE
    assert found.values == {(1, "mlp.up_proj"): pytest.approx(0.1)}


def test_without_parent_and_norms_it_is_a_norm_itself() -> None:
    found = measure(update(up=([[1, 0]], [[3], [4]])), None, Dimensions(MODULES))
    assert found.against is Against.NOTHING
    assert found.values == {(1, "mlp.up_proj"): pytest.approx(5.0)}


def test_a_parent_that_was_never_trained_is_as_none() -> None:
    parent = update(up=([[1, 1]], [[0], [0]]))
    found = measure(update(up=([[1, 0]], [[3], [4]])), parent, Dimensions(MODULES, norms={UP: 50.0}))
    assert found.against is Against.BASE
    assert found.values == {(1, "mlp.up_proj"): pytest.approx(0.1)}


def test_what_the_parent_left_alone_has_no_ratio_and_what_the_child_left_alone_has_gone_whole() -> None:
    child = update(query=([[1, 0]], [[1], [1]]))
    parent = update(up=([[1, 0]], [[1], [1]]))
    found = measure(child, parent, Dimensions(MODULES))
    assert found.values == {(0, "self_attn.q_proj"): None, (1, "mlp.up_proj"): pytest.approx(1.0)}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.12.mlp.down_proj", (12, "mlp.down_proj")),
        ("transformer.h.3.attn.c_attn", (3, "attn.c_attn")),
        ("lm_head", (-1, "lm_head")),
    ],
)
def test_layers_are_read_from_the_names_of_modules(name: str, place: tuple[int, str]) -> None:
    assert place_of(name) == place
