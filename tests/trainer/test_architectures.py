"""Every family of docs/backbones.md: what is searched, trained, merged, published and loaded by PEFT is one model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from service.adapters.artifacts import ArtifactStore
from service.catalog.trie import CODES, LEVELS, build_trie
from service.errors import ArtifactError, ConfigurationError
from service.generation.backbone import Backbone, merge_lora
from service.generation.engine import GenerationRequest
from service.generation.llama import pack
from service.generation.prompt import Prompt
from service.generation.reference import score_items
from service.generation.torch_engine import TorchEngine, TorchModel
from service.settings import GroupBy
from tests.architectures import FAMILIES, MIXTURES, TRANSPOSED, make
from tests.language_models import byte_tokenizer, saved
from trainer.examples import TrainingSequence
from trainer.execution import Execution, executing
from trainer.fit import sequence_loss
from trainer.language_check import check_layers, check_passes
from trainer.language_model import load_language_model, save_language_model
from trainer.lora import ADDING, LoraBackbone, adaptable, dimensions_of, is_transposed, save_adapter
from trainer.proximal import groups

torch.set_num_threads(1)  # models this small only wait for one another's threads
FIRST = 40
VOCABULARY = FIRST + LEVELS * CODES
PROMPT = Prompt("instruction", FIRST, np.array([7, 9, 8]), np.array([11]), np.array([12, 13]))
ITEMS = np.random.default_rng(5).integers(0, CODES, size=(30, LEVELS)).astype(np.int16)
HISTORY = ITEMS[[1, 2, 3]]
BATCH = [
    TrainingSequence(np.array([3, 1, 4, 1, 5]), 2),
    TrainingSequence(np.array([9, 2]), 0),
    TrainingSequence(np.array([7, 8, 9, 10, 11, 0]), 5),
]
SCALE = 2.0
NOTHING = np.empty(0, np.int64)
every_family = pytest.mark.parametrize("family", FAMILIES)


def backbone_of(family: str, **changes: Any) -> Backbone:
    return Backbone(make(family, VOCABULARY, **changes), PROMPT)


def adapter_of(model: PreTrainedModel, rank: int = 4) -> dict[str, Tensor]:
    """Both factors of every layer away from zero."""
    lora = LoraBackbone(Backbone(model, PROMPT), rank=rank, alpha=SCALE * rank, dropout=0.0, seed=0)
    lora.unwrap()
    generator = torch.Generator().manual_seed(1)
    return {name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in lora.tensors().items()}


@torch.no_grad()
def own_scores(model: nn.Module) -> np.ndarray:
    """Each item's score from the model's own logits over its whole vocabulary."""
    prompt = np.tile(PROMPT.encode(HISTORY), (len(ITEMS), 1))
    tokens = np.concatenate([prompt, (ITEMS.astype(np.int64) + PROMPT.offsets)[:, :-1]], axis=1)
    logits = model(input_ids=torch.from_numpy(tokens), use_cache=False).logits[:, -LEVELS:].double()
    total = torch.zeros(len(ITEMS), dtype=torch.float64)
    for level, start in enumerate(PROMPT.offsets.tolist()):
        logp = torch.log_softmax(logits[:, level, start : start + CODES], dim=-1)
        total += logp.gather(1, torch.from_numpy(ITEMS[:, level : level + 1].astype(np.int64)))[:, 0]
    return total.numpy()


@every_family
def test_a_search_under_a_merged_adapter_gives_every_item_the_models_own_score(family: str) -> None:
    base = backbone_of(family)
    merged = merge_lora(base, adapter_of(base.model), SCALE)
    expected = own_scores(merged.model)
    assert np.abs(expected - own_scores(base.model)).max() > 0.1
    np.testing.assert_allclose(score_items(merged, HISTORY, ITEMS), expected, atol=1e-4)

    trie = build_trie(ITEMS)
    served = TorchModel(merged, "b", None, least_beams=len(ITEMS))
    requests = [GenerationRequest(ITEMS[rows], len(ITEMS), NOTHING) for rows in ([0], [1, 2, 3], [4, 5, 6, 7, 8, 9])]
    for request, found in zip(requests, served.generate(requests, trie), strict=True):
        scores = score_items(merged, request.history, trie.leaf_codes)
        assert sorted(found.leaves.tolist()) == list(range(len(ITEMS)))
        np.testing.assert_allclose(found.scores, scores[found.leaves], atol=1e-4)
    assert (pack(merged.model) is not None) == (family == "llama")


@every_family
def test_targets_that_share_a_history_train_as_separate_prompts_would(family: str) -> None:
    """In float64; rotary frequencies stay float32 inside transformers, which 1e-5 leaves room for."""
    model = make(family, VOCABULARY).double()
    model.config._experts_implementation = "eager"  # fused experts take no float64
    backbone = Backbone(model, PROMPT)
    lora = LoraBackbone(backbone, rank=4, alpha=8, dropout=0.0, seed=0)
    tensors = adapter_of(make(family, VOCABULARY))
    for name, parameter in lora.parameters.items():
        parameter.data = tensors[name].double()
    parameters = list(lora.parameters.values())

    loss, _ = sequence_loss(backbone, BATCH, ITEMS)
    expected = separately(backbone)

    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    ours, theirs = (torch.autograd.grad(value, parameters) for value in (loss, expected))
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
        assert bool(other.any())


def separately(backbone: Backbone) -> Tensor:
    """The loss of each target behind its whole prompt, from the model's own logits; mean over targets."""
    losses = []
    for sequence in BATCH:
        for target in range(sequence.first_target, len(sequence.rows)):
            text = backbone.prompt.encode(ITEMS[sequence.rows[:target]])
            own = ITEMS[sequence.rows[target]].astype(np.int64)
            tokens = torch.from_numpy(np.concatenate([text, (own + PROMPT.offsets)[:-1]]))
            logits = backbone.model(input_ids=tokens[None], use_cache=False).logits[0, len(text) - 1 :]
            rows = [logits[level, start : start + CODES] for level, start in enumerate(PROMPT.offsets.tolist())]
            losses.append(nn.functional.cross_entropy(torch.stack(rows), torch.from_numpy(own), reduction="sum"))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma2", "falcon", "mixtral"])
def test_blocks_that_are_recomputed_give_the_same_gradients(family: str) -> None:
    backbone = backbone_of(family)
    lora = LoraBackbone(backbone, rank=4, alpha=8, dropout=0.0, seed=0)
    lora.load(adapter_of(make(family, VOCABULARY)))
    parameters = list(lora.parameters.values())
    expected = torch.autograd.grad(sequence_loss(backbone, BATCH, ITEMS)[0], parameters)
    layer = next(iter(lora.layers.values()))
    calls = []
    hook = layer.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    with executing(backbone, Execution(checkpoint=True)):
        found = torch.autograd.grad(sequence_loss(backbone, BATCH, ITEMS)[0], parameters)
    hook.remove()

    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other)
    assert len(calls) == 2  # forward, and again in the backward pass


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox", "phi3"])
def test_dropout_falls_on_what_attention_and_mlp_add_in_every_block(family: str) -> None:
    backbone = backbone_of(family)
    backbone.model.train(True)
    for module in backbone.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.manual_seed(0)
    plain, dropped, other = (sequence_loss(backbone, BATCH, ITEMS, 0.0, rate)[0].item() for rate in (0.0, 0.5, 0.5))
    assert len({round(loss, 6) for loss in (plain, dropped, other)}) == 3
    adding = [name for name in adaptable(backbone.model) if name.endswith(ADDING)]
    assert len(adding) == 4  # two a block


@every_family
def test_peft_loads_the_adapter_that_is_merged_here(family: str, tmp_path: Path) -> None:
    base = backbone_of(family)
    tensors = adapter_of(base.model)
    save_adapter(tmp_path, tensors, scale=SCALE, transposed=is_transposed(base.model))

    loaded = PeftModel.from_pretrained(make(family, VOCABULARY), tmp_path, local_files_only=True)

    np.testing.assert_allclose(
        own_scores(loaded.train(False)), own_scores(merge_lora(base, tensors, SCALE).model), atol=1e-4
    )
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] is (family in TRANSPOSED)


@every_family
def test_the_model_is_accepted_saved_published_and_served_with_its_adapter(family: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "downloaded", model=make(family, len(byte_tokenizer())))
    found = load_language_model(str(folder), seed=0)
    check_passes(found.backbone, family, history_items=4)
    for name in ("model", "codec"):
        (tmp_path / "base" / name).mkdir(parents=True)
    (tmp_path / "base" / "codec" / "codec.json").write_text("{}")
    tensors = adapter_of(found.backbone.model)
    expected = score_items(merge_lora(found.backbone, tensors, SCALE), HISTORY, ITEMS)
    own = dimensions_of(found.backbone.model)
    save_language_model(found, tmp_path / "base" / "model")
    store = ArtifactStore(tmp_path / "artifacts")
    published = store.publish_base(tmp_path / "base", {})
    base = store.open_base(published.id, published.digest)
    save_adapter(tmp_path / "adapter", tensors, scale=SCALE, transposed=base.dimensions.transposed)

    adapter = store.publish_adapter(tmp_path / "adapter", {"base_id": base.base_id})
    opened = store.open_adapter(adapter.id, adapter.digest, base)
    served = TorchEngine(device="cpu", dtype="float32", beams=5, history_items=4).load(base, opened)
    [ranked] = served.generate([GenerationRequest(HISTORY, len(ITEMS), NOTHING)], build_trie(ITEMS))

    assert replace(base.dimensions, norms={}) == own
    np.testing.assert_allclose(ranked.scores, np.sort(expected)[::-1], atol=1e-4)
    fewer = {name: tensor for name, tensor in tensors.items() if ".1." not in name}
    save_adapter(tmp_path / "fewer", fewer, scale=SCALE, transposed=base.dimensions.transposed)
    with pytest.raises(ArtifactError, match="is missing"):
        store.publish_adapter(tmp_path / "fewer", {"base_id": base.base_id})


@every_family
def test_the_tensors_of_one_block_are_one_group_whatever_its_list_is_called(family: str) -> None:
    grouped = groups(adapter_of(make(family, VOCABULARY)), GroupBy.LAYER)
    assert sum(len(stacked) for stacked in grouped) == 2


@pytest.mark.parametrize("family", sorted(MIXTURES))
def test_of_a_mixture_of_experts_attention_alone_is_adapted(family: str) -> None:
    assert {name.split(".")[-2] for name in adaptable(make(family, VOCABULARY))} == {"self_attn"}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("bloom", {}, "ALiBi"),
    ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "ALiBi"),
    ("falcon", {"alibi": True}, "ALiBi"),
    ("mamba", {}, "recurrent"),
    ("bert", {}, "encoder"),
    ("qwen3_next", {}, "recurrent"),
    (
        "gpt_neo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
        "share",
    ),
    ("lfm2", {"layer_types": ["conv", "full_attention"]}, ""),
    ("falcon_h1", {}, ""),
]


@pytest.mark.parametrize(
    ("family", "changes", "why"), REFUSED, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(REFUSED)]
)
def test_what_cannot_share_passes_is_refused_with_the_families_that_can(
    family: str, changes: dict[str, Any], why: str
) -> None:
    model = make(family, VOCABULARY, **changes)

    def check() -> None:
        check_layers(model, "this one")
        check_passes(Backbone(model, PROMPT), "this one", 6)

    with pytest.raises(ConfigurationError, match=f"{type(model).__name__}.*{why}.*families that work: Llama"):
        check()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_scale_of_the_logits_that_is_not_known_here_is_refused() -> None:
    backbone = backbone_of("qwen2")

    class Louder(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    head = Louder(32, VOCABULARY, bias=False)
    head.weight = backbone.model.get_output_embeddings().weight
    backbone.model.set_output_embeddings(head)
    with pytest.raises(ConfigurationError, match="unknown scale or cap"):
        check_passes(backbone, "this one", 4)


@pytest.mark.parametrize(
    "changes", [{"max_position_embeddings": 48}, {"sliding_window": 48}], ids=["positions", "window"]
)
def test_a_model_that_reads_too_little_is_refused_with_how_many_items_fit(changes: dict[str, int]) -> None:
    """3 tokens before, 4 an item, 1 between two, 2 behind, and 3 codes of a target: 8 items are 47 tokens, 9 are 52."""
    backbone = backbone_of("mistral", **changes)
    assert backbone.most_items == 8
    with pytest.raises(ConfigurationError, match=r"at most 48 tokens.*has 52; set ADAPTIDE_HISTORY_ITEMS to at most 8"):
        check_passes(backbone, "this one", 9)
    check_passes(backbone, "this one", 8)


def test_a_model_that_reads_no_prompt_at_all_says_so() -> None:
    with pytest.raises(ConfigurationError, match="not even one item fits"):
        check_passes(backbone_of("llama", max_position_embeddings=8), "this one", 1)
