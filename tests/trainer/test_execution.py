"""However a batch is padded, cut or recomputed, its gradients are those of the batch as it comes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.catalog.trie import CODES, LEVELS
from service.generation.backbone import Backbone
from service.generation.prompt import Prompt, compact
from tests.language_models import llama
from trainer.examples import TrainingSequence
from trainer.execution import AS_IT_COMES, FEWEST_TOKENS, MOST_TOKENS, Execution, executing, fitting, plan, within_share
from trainer.fit import add_gradients, sequence_loss
from trainer.layout import Size, lay_out, sequence_length
from trainer.lora import AdaptedLinear

FIRST = 40
CODES_OF = np.random.default_rng(5).integers(0, CODES, size=(12, LEVELS)).astype(np.int16)
BATCH = [
    TrainingSequence(np.array([3, 1, 4, 1, 5]), 2),
    TrainingSequence(np.array([9, 2]), 0),
    TrainingSequence(np.array([6]), 0),
    TrainingSequence(np.array([7, 8, 9, 10, 11, 0]), 5),
    TrainingSequence(np.array([2, 3, 4]), 1),
]
TEXT = Prompt("instruction", FIRST, np.array([7, 9, 8]), np.array([11]), np.array([12, 13]))


@pytest.fixture(params=[compact(FIRST), TEXT], ids=["compact", "instruction"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return Backbone(llama(FIRST + LEVELS * CODES).double().train(), request.param)


def gradients(backbone: Backbone, execution: Execution, residual_dropout: float = 0.0) -> tuple[Tensor, list[Tensor]]:
    backbone.model.zero_grad()
    torch.manual_seed(3)
    with executing(backbone, execution, residual_dropout) as left:
        loss, targets = add_gradients(backbone, BATCH, CODES_OF, execution, (0.0, left), low_precision=False)
    assert targets == 9
    return loss, [p.grad for p in backbone.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("tokens", [64, 128, 10_000])
def test_parts_padding_and_recomputing_leave_loss_and_gradients_as_they_are(
    backbone: Backbone, tokens: int, checkpoint: bool
) -> None:
    loss, expected = gradients(backbone, AS_IT_COMES)

    again, found = gradients(backbone, Execution(rows=5, lengths=(32, 64), tokens=tokens, checkpoint=checkpoint))

    torch.testing.assert_close(again, loss, rtol=0, atol=1e-9)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-9)


def test_recomputed_blocks_drop_again_what_they_dropped() -> None:
    backbone = Backbone(llama(FIRST + LEVELS * CODES).double().train(), TEXT)
    loss, expected = gradients(backbone, Execution(rows=5, lengths=(64,)), residual_dropout=0.3)
    plain, _ = gradients(backbone, Execution(rows=5, lengths=(64,)))

    again, found = gradients(backbone, Execution(rows=5, lengths=(64,), checkpoint=True), residual_dropout=0.3)

    assert loss != plain
    torch.testing.assert_close(again, loss, rtol=0, atol=1e-9)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-9)
    after, _ = gradients(backbone, Execution(rows=5, lengths=(64,), checkpoint=True))
    torch.testing.assert_close(after, plain, rtol=0, atol=1e-9)


def test_rows_and_tokens_that_are_only_padding_change_no_loss(backbone: Backbone) -> None:
    loss, targets = sequence_loss(backbone, BATCH, CODES_OF)
    padded, same = sequence_loss(backbone, BATCH, CODES_OF, size=Size(rows=8, length=96))
    assert targets == same == 9
    torch.testing.assert_close(padded, loss, rtol=0, atol=1e-9)


def test_a_sequence_is_as_long_as_it_is_laid_out(backbone: Backbone) -> None:
    for sequence in BATCH:
        real = lay_out(backbone.prompt, [sequence], CODES_OF).real
        assert sequence_length(backbone.prompt, sequence) == real.sum()


def test_a_batch_is_cut_into_parts_of_one_shape() -> None:
    backbone = Backbone(llama(FIRST + LEVELS * CODES), compact(FIRST))
    execution = Execution(rows=5, lengths=(16, 32), tokens=64, compiled=True)

    parts = list(execution.parts(backbone, BATCH))

    assert [len(part) for part, _ in parts] == [2, 2, 1]
    assert {size for _, size in parts} == {Size(2, 32)}  # the longest sequence has 25 tokens, two such rows fit 64
    assert [sequence for part, _ in parts for sequence in part] == BATCH
    as_they_are = Execution(rows=5, lengths=(16, 32), tokens=64).parts(backbone, BATCH)
    assert [size.rows for _, size in as_they_are] == [2, 2, 1]  # who watches inputs sees no row of padding


def test_a_cpu_takes_batches_as_they_come() -> None:
    backbone = Backbone(llama(FIRST + LEVELS * CODES), compact(FIRST))
    assert plan(backbone, BATCH, batch_size=2, epochs=4) is AS_IT_COMES


def test_little_memory_means_fewer_tokens_and_in_the_end_recomputed_blocks() -> None:
    backbone = Backbone(llama(FIRST + LEVELS * CODES), compact(FIRST))
    much, little = fitting(backbone, 1e12, compiled=False), fitting(backbone, 1e6, compiled=False)
    assert much == (MOST_TOKENS, False)
    assert little[0] < FEWEST_TOKENS
    assert little[1]


def test_a_process_leaves_others_their_share_of_the_memory() -> None:
    alone = within_share(free=70, total=80, share=1.0, allocated=5, reserved=10)
    assert alone == 75  # what it holds without using it is free to it
    assert within_share(free=70, total=80, share=0.25, allocated=5, reserved=10) == 15
    assert within_share(free=4, total=80, share=0.25, allocated=5, reserved=10) == 9  # others took more than theirs
    assert within_share(free=70, total=80, share=0.05, allocated=5, reserved=10) == 0


def test_sixteen_bit_weights_do_not_round_a_small_update_away() -> None:
    """1.001 is 1 in bfloat16: merged, the two entries that differ by the update would give the same."""
    base = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        base.weight.fill_(1.0)
    base.to(torch.bfloat16)
    layer = AdaptedLinear("layer", base, 1.0, 0.0)
    layer.current = (torch.tensor([[1e-3, -1e-3, 0.0, 0.0]]), torch.ones(1, 1))

    found = layer(torch.tensor([[1.0, -1.0, 0.0, 0.0]], dtype=torch.bfloat16))

    assert found.item() == pytest.approx(2e-3, rel=0.01)


def test_targets_that_are_only_padding_change_no_loss(backbone: Backbone) -> None:
    loss, _ = sequence_loss(backbone, BATCH, CODES_OF)
    padded, same = sequence_loss(backbone, BATCH, CODES_OF, size=Size(targets=40))
    assert same == 9
    torch.testing.assert_close(padded, loss, rtol=0, atol=1e-12)


def test_parts_have_room_for_the_targets_that_were_planned_and_none_for_more() -> None:
    backbone = Backbone(llama(FIRST + LEVELS * CODES), compact(FIRST))
    planned = Execution(rows=5, lengths=(16, 32), tokens=64, targets=(1, 3))
    longer = TrainingSequence(np.array([1, 2, 3, 4]), 0)

    assert {size for _, size in planned.parts(backbone, BATCH)} == {Size(2, 32, 6)}
    assert [size for _, size in planned.parts(backbone, [longer, longer])] == [Size(3, 16, 0)]
    beyond = TrainingSequence(np.arange(12), 11)
    assert [size for _, size in planned.parts(backbone, [beyond])] == [Size(1, 48, 0)]
