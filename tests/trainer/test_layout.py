"""All of a user's targets in one pass are what separate prompts would be, in loss and in gradient."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from service.catalog.trie import CODES, LEVELS
from service.generation.backbone import Backbone
from service.generation.prompt import Prompt
from trainer.examples import TrainingSequence
from trainer.fit import sequence_loss
from trainer.layout import lay_out, visible

FIRST = 40
CODES_OF = np.random.default_rng(5).integers(0, CODES, size=(12, LEVELS)).astype(np.int16)
BATCH = [
    TrainingSequence(np.array([3, 1, 4, 1, 5]), 2),
    TrainingSequence(np.array([9, 2]), 0),
    TrainingSequence(np.array([6]), 0),
    TrainingSequence(np.array([7, 8, 9, 10, 11, 0]), 5),
]
SIZES = {"vocab_size": FIRST + LEVELS * CODES, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def prompt(between: list[int], after: list[int]) -> Prompt:
    return Prompt(
        "instruction", FIRST, np.array([7, 9, 8]), np.array(between, dtype=np.int64), np.array(after, dtype=np.int64)
    )


def llama(**more: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=4, **more))


def qwen() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=2))


def separately(backbone: Backbone) -> Tensor:
    """Each target behind its whole prompt, one sequence a target, one token after another, mean over targets."""
    losses = []
    for sequence in BATCH:
        for target in range(sequence.first_target, len(sequence.rows)):
            text = backbone.prompt.encode(CODES_OF[sequence.rows[:target]])
            own = CODES_OF[sequence.rows[target]].astype(np.int64)
            tokens = torch.from_numpy(np.concatenate([text, (own + backbone.prompt.offsets)[:-1]]))
            hidden = backbone.decoder(input_ids=tokens[None], use_cache=False).last_hidden_state[0, len(text) - 1 :]
            logits = torch.stack([hidden[level] @ backbone.head[level].T for level in range(LEVELS)])
            losses.append(nn.functional.cross_entropy(logits, torch.from_numpy(own), reduction="sum"))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("between", "after"), [([], []), ([11], [12, 13]), ([], [12, 13]), ([11, 10], []), ([11, 10], [12, 13, 14])]
)
@pytest.mark.parametrize(
    "make",
    [llama, lambda: llama(num_key_value_heads=2, tie_word_embeddings=True), qwen],
    ids=["llama", "grouped-and-tied", "qwen2"],
)
def test_one_pass_gives_the_loss_and_gradients_of_separate_prompts(
    make: Callable[[], PreTrainedModel], between: list[int], after: list[int]
) -> None:
    torch.manual_seed(3)
    model = make().double()
    backbone = Backbone(model, prompt(between, after))
    parameters = list(model.parameters())

    loss, targets = sequence_loss(backbone, BATCH, CODES_OF)
    expected = separately(backbone)

    assert targets == 7
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    for own, other in zip(found, wanted, strict=True):
        if other is None:
            assert own is None
            continue
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5)


def test_a_branch_sees_its_own_history_and_itself_and_nothing_of_other_targets() -> None:
    layout = lay_out(prompt([11], [12]), [TrainingSequence(np.array([0, 1, 2]), 1)], CODES_OF)
    assert layout.branches is not None
    _, owner, reach = layout.branches
    seen = visible(torch.from_numpy(owner), torch.from_numpy(reach))[0]

    trunk = 3 + 4 + 1 + 4  # before, an item, between, an item
    first, second = trunk, trunk + 4  # a branch is the text behind and three codes
    assert seen[first].nonzero().flatten().tolist() == [*range(3 + 4), first]
    assert seen[second + 3].nonzero().flatten().tolist() == [*range(trunk), *range(second, second + 4)]
    assert layout.real.sum() == second + 4
