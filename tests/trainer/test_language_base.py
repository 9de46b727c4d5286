"""A base from a language model, from D_1 to an update of the service."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from service.adapters import repository
from service.adapters import service as adapters
from service.adapters.artifacts import ArtifactStore
from service.catalog import repository as catalog_rows
from service.catalog.encoding import CodecFollower
from service.catalog.schemas import Item
from service.catalog.semantic_ids import load_codec
from service.catalog.service import get_item, item_text, put_items
from service.catalog.trie import CODES, LEVELS, build_trie
from service.errors import ConfigurationError, Conflict, InvalidRequest
from service.generation.backbone import load_backbone
from service.generation.engine import GenerationRequest
from service.generation.reference import score_items
from service.generation.torch_engine import TorchEngine
from service.kit.db import Database
from service.settings import Settings
from service.windows.states import WindowState
from tests import worlds
from tests.architectures import make
from tests.conftest import SetClock
from tests.language_models import byte_tokenizer, llama, qwen2, saved
from tests.trainer.backtest.drifting import drifting
from trainer.backtest.bases import base_folder, fit_base, made_from, open_base, take_base
from trainer.base import BuiltBase, build_base
from trainer.examples import Case, Examples, TrainingSequence
from trainer.language_base import LanguageRecipe, TrainMode, train_language_base
from trainer.language_model import LanguageModel, load_language_model, save_language_model, token_rows
from trainer.learn import served
from trainer.progress import silent
from trainer.recipe import BaseRecipe, make_recipe
from trainer.tokenizer.fit import Quantiser, TextEncoderKind, TokenizerConfig
from trainer.updater import Updater

torch.set_num_threads(1)  # models this small only wait for one another's threads
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the dialect plays no part
CODES_OF = np.random.default_rng(2).integers(0, CODES, size=(6, LEVELS)).astype(np.int16)
ROUND = tuple(TrainingSequence(np.roll(np.arange(6), i)[:4], 1) for i in range(6))  # each item behind the one before
CASES = tuple(Case(f"u{i}", np.array([i]), (i + 1) % 6, np.array([i])) for i in range(6))
EXAMPLES = Examples(ROUND, CASES, CASES)


def train(folder: Path, mode: TrainMode, **changes: Any) -> tuple[Any, Any, Any, list[torch.Tensor]]:
    found = load_language_model(str(folder), seed=0)
    before = [rows.detach().clone() for rows in token_rows(found.backbone.model)]
    recipe = LanguageRecipe(str(folder), mode, **({"epochs": 12, "batch_size": 2, "learning_rate": 1e-2} | changes))
    adapter, report = train_language_base(
        found,
        recipe,
        EXAMPLES,
        CASES,
        CODES_OF,
        Settings(lora_rank=8, lora_alpha=16),
        device=torch.device("cpu"),
        low_precision=False,
        on_step=lambda done, total: None,
    )
    return found.backbone, adapter, report, before


@pytest.mark.parametrize("make", [llama, qwen2])
def test_lora_on_d1_leaves_every_other_weight_alone(tmp_path: Path, make: Callable[[int], PreTrainedModel]) -> None:
    folder = saved(tmp_path, model=make(len(byte_tokenizer())))
    before = load_language_model(str(folder), seed=0).backbone.model.state_dict()

    backbone, adapter, report, rows = train(folder, TrainMode.LORA, epochs=1)

    changed = {n for n, weight in backbone.model.state_dict().items() if not torch.equal(weight, before[n])}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"}
    of_rows = len(rows) * LEVELS * CODES * 32
    assert report.trainable_parameters == of_rows + sum(t.numel() for t in adapter.tensors.values())


FAMILIES = ["gemma3_text", "gpt2", "phi", "opt", "granite", "mixtral"]
"""Scaled embeddings tied to a capped head, transposed weights, a head's bias, embeddings of another size, .."""


@pytest.mark.parametrize("family", FAMILIES)
def test_other_architectures_learn_rows_and_lora_and_serve_what_was_trained(tmp_path: Path, family: str) -> None:
    changes = {"final_logit_softcapping": 30.0} if family == "gemma3_text" else {}
    folder = saved(tmp_path, model=make(family, len(byte_tokenizer()), **changes))
    before = load_language_model(str(folder), seed=0).backbone.model.state_dict()

    backbone, adapter, report, rows = train(folder, TrainMode.LORA, epochs=6)

    first = backbone.first_code_token
    changed = {n for n, weight in backbone.model.state_dict().items() if not torch.equal(weight, before[n])}
    named = {n for n, weight in before.items() if weight.shape[0] >= first + LEVELS * CODES and weight.ndim == 2}
    assert changed == named
    for own, old in zip(token_rows(backbone.model), rows, strict=True):
        assert torch.equal(own[:first], old[:first])
    losses = [-score for _, score in report.scores]
    assert min(losses) < 0.8 * losses[0]
    model = served(backbone, adapter, beams=10)
    scores = [score_items(model.backbone, CODES_OF[[i]], CODES_OF)[(i + 1) % 6] for i in range(6)]
    assert np.mean(scores) == pytest.approx(-min(losses), abs=1e-3)


@pytest.mark.parametrize("mode", list(TrainMode))
@pytest.mark.parametrize("tied", [True, False])
def test_trained_rows_are_frozen_into_the_base_and_serve_in_float32_and_bfloat16(
    tmp_path: Path, tied: bool, mode: TrainMode
) -> None:
    folder = saved(tmp_path / "model", tied=tied)
    found = load_language_model(str(folder), seed=0)
    words = [rows[: found.backbone.first_code_token].clone() for rows in token_rows(found.backbone.model)]
    backbone, _, _, _ = train(folder, mode, epochs=3)
    trained = [rows.detach().clone() for rows in token_rows(backbone.model)]
    scores = score_items(backbone, CODES_OF[[0, 1]], CODES_OF)
    found = LanguageModel(backbone, found.tokenizer)

    save_language_model(found, tmp_path / "base")

    for dtype, near in ((torch.float32, 0.3), (torch.bfloat16, 0.6)):
        opened = load_backbone(tmp_path / "base", torch.device("cpu"), dtype)
        rows = token_rows(opened.model)
        assert len(rows) == (1 if tied else 2)
        for own, was in zip(rows, trained, strict=True):
            assert torch.equal(own, was.bfloat16().to(dtype))
        kept = [torch.equal(own[: len(old)], old.to(dtype)) for own, old in zip(rows, words, strict=True)]
        assert all(kept) if mode is TrainMode.LORA else not kept[0]
        np.testing.assert_allclose(score_items(opened, CODES_OF[[0, 1]], CODES_OF), scores, atol=near)


@pytest.mark.parametrize("tied", [True, False])
def test_lora_on_d1_changes_the_semantic_id_rows_and_nothing_else_of_the_base(tmp_path: Path, tied: bool) -> None:
    backbone, adapter, report, before = train(saved(tmp_path, tied=tied), TrainMode.LORA)

    first = backbone.first_code_token
    for rows, old in zip(token_rows(backbone.model), before, strict=True):
        assert torch.equal(rows[:first], old[:first])
        assert not torch.equal(rows[first:], old[first:])
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert adapter is not None
    assert adapter.rank == 8
    assert any(bool(t.any()) for name, t in adapter.tensors.items() if "lora_B" in name)
    losses = [-score for _, score in report.scores]
    assert min(losses) < losses[0] / 2


def test_what_was_trained_is_what_serves(tmp_path: Path) -> None:
    """The rows frozen into the base and the LoRA merged score as the model did while it was trained."""
    backbone, adapter, report, _ = train(saved(tmp_path), TrainMode.LORA)
    model = served(backbone, adapter, beams=10)

    scores = [score_items(model.backbone, CODES_OF[[i]], CODES_OF)[(i + 1) % 6] for i in range(6)]
    assert np.mean(scores) == pytest.approx(max(score for _, score in report.scores), abs=1e-3)


def test_full_training_changes_all_weights_and_gives_no_adapter(tmp_path: Path) -> None:
    backbone, adapter, report, before = train(saved(tmp_path), TrainMode.FULL, epochs=4)
    assert adapter is None
    words = slice(0, backbone.first_code_token)
    assert not torch.equal(token_rows(backbone.model)[0][words], before[0][words])
    assert report.best_epoch > 0
    assert not any(p.requires_grad for p in backbone.model.parameters())


class Desk:
    def __init__(self, database: Database, clock: SetClock, settings: Settings) -> None:
        self.database, self.clock, self.settings = database, clock, settings
        self.artifacts = ArtifactStore(settings.artifacts_dir)

    def build(self, source: str, encoder: TextEncoderKind = TextEncoderKind.TFIDF, **changes: Any) -> BuiltBase:
        recipe = BaseRecipe(
            tokenizer=TokenizerConfig(quantiser=Quantiser.RQKMEANS, text_encoder=encoder),
            language=LanguageRecipe(source, **({"epochs": 1, "batch_size": 8, "learning_rate": 1e-2} | changes)),
        )
        return build_base(self.database, self.artifacts, self.settings, self.clock, recipe, actor="tests")


@pytest.fixture
def desk(database: Database, clock: SetClock, tmp_path: Path, database_url: str) -> Desk:
    worlds.put(database, clock, worlds.items())
    worlds.send(database, clock, worlds.first_walks())
    settings = Settings(
        home=tmp_path / "home",
        database_url=database_url,
        update_epochs=1,
        update_min_steps=0,
        learning_rate_update=1e-2,
        lora_rank=8,
        lora_alpha=16,
        embedding_dropout=0.0,
        residual_dropout=0.0,
        gate_tolerance=1.0,
        window_min_events=5,
    )
    return Desk(database, clock, settings)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@on_sqlite
def test_a_base_from_a_folder_serves_and_is_updated(desk: Desk, tmp_path: Path, family: str) -> None:
    built = desk.build(str(saved(tmp_path / "model", model=make(family, len(byte_tokenizer())))))

    adapter = adapters.read_adapter(desk.database, built.adapter_version).adapter
    assert adapter.method == "base"
    with desk.database.read() as connection:
        row = repository.find_base(connection, built.base_id)
    assert row is not None
    base = desk.artifacts.open_base(built.base_id, row.digest)
    opened = desk.artifacts.open_adapter(built.adapter_version, adapter.digest, base)
    model = TorchEngine(device="cpu", dtype="float32", beams=10).load(base, opened)
    assert model.backbone.prompt.kind == "instruction"

    worlds.send(desk.database, desk.clock, worlds.later_walks())
    [window] = Updater(desk.database, desk.settings, desk.clock, desk.artifacts).close_and_work(None)

    assert window.state is WindowState.PROMOTED
    assert adapters.read_registry(desk.database).pointer.adapter_version != built.adapter_version


@on_sqlite
def test_a_backbone_that_cannot_be_had_is_named_before_anything_is_trained(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        desk.build(str(tmp_path / "nowhere"))
    assert not list(desk.artifacts.root.glob("*/*"))


@on_sqlite
def test_a_backbone_that_reads_too_few_tokens_is_refused_before_anything_is_trained(desk: Desk, tmp_path: Path) -> None:
    model = make("gpt2", len(byte_tokenizer()), max_position_embeddings=120)
    with pytest.raises(ConfigurationError, match="set ADAPTIDE_HISTORY_ITEMS to at most"):
        desk.build(str(saved(tmp_path / "model", model=model)))
    assert not list(desk.artifacts.root.glob("*/*"))


def test_texts_are_encoded_by_a_language_model_that_stays_as_it_is_or_not_at_all() -> None:
    given: dict[str, Any] = {"hidden": 64, "layers": 2, "epochs": 1, "quantiser": "rqkmeans"}
    recipe = make_recipe("smollm2", text_encoder="backbone", **given)
    assert recipe.tokenizer.text_encoder is TextEncoderKind.BACKBONE
    for backbone, mode in (("tiny", "lora"), ("smollm2", "full")):
        with pytest.raises(InvalidRequest, match="--train lora"):
            make_recipe(backbone, train=mode, text_encoder="backbone", **given)


@on_sqlite
def test_a_base_that_encodes_texts_itself_encodes_later_ones_in_the_background(desk: Desk, tmp_path: Path) -> None:
    built = desk.build(str(saved(tmp_path / "model")), encoder=TextEncoderKind.BACKBONE)

    with desk.database.read() as connection:
        row = repository.find_base(connection, built.base_id)
        items = sorted(catalog_rows.changed_since(connection, 0), key=lambda item: item.item_id)
    assert row is not None
    codec = load_codec(desk.artifacts.open_base(built.base_id, row.digest).path / "codec")
    texts = [item_text(item.title, item.categories, item.brand, item.description) for item in items]
    assert codec.assign(texts, ()) == [
        item.codes for item in items
    ]  # the stored model is the one that D_1 was fitted on
    assert len({item.codes for item in items}) == worlds.ITEMS

    follower = CodecFollower(desk.database, desk.settings.poll_interval, lambda base_id: codec)
    follower.refresh()
    new = Item(item_id="new", title="golden kettle")
    put_items(desk.database, desk.clock, [new], follower.active())
    assert get_item(desk.database, "new").codes is None
    follower.refresh()
    assert get_item(desk.database, "new").base_id == built.base_id


def test_a_backtests_base_keeps_adapter_one_and_is_taken_again_for_the_same_question_only(tmp_path: Path) -> None:
    data, settings = drifting(), Settings()
    language = LanguageRecipe(str(saved(tmp_path / "model")), epochs=1, learning_rate=1e-2)
    recipe, first, second = BaseRecipe(language=language), tmp_path / "first", tmp_path / "second"

    fit_base(data, recipe, settings, base_folder(first, 0), silent)
    take_base(base_folder(first, 0), base_folder(second, 0), made_from(data, recipe, settings))

    opened, taken = (open_base(data, base_folder(out, 0), settings) for out in (first, second))
    assert opened.backbone.prompt.kind == "instruction"
    assert opened.backbone.model.dtype == torch.float32  # on a CPU, whatever it is stored in
    assert opened.adapter is not None
    assert taken.adapter is not None
    assert taken.adapter.scale == opened.adapter.scale == settings.lora_alpha / settings.lora_rank
    assert all(torch.equal(tensor, opened.adapter.tensors[name]) for name, tensor in taken.adapter.tensors.items())
    other = made_from(data, recipe, settings.model_copy(update={"lora_rank": 4}))
    with pytest.raises(Conflict, match="other settings"):
        take_base(base_folder(first, 0), base_folder(tmp_path / "third", 0), other)


def test_a_search_under_the_instruction_prompt_finds_the_brute_force_ranking(tmp_path: Path) -> None:
    backbone, adapter, _, _ = train(saved(tmp_path), TrainMode.LORA, epochs=2)
    model = served(backbone, adapter, beams=10)
    trie = build_trie(CODES_OF)
    requests = [GenerationRequest(CODES_OF[rows], 6, np.empty(0, np.int64)) for rows in ([0], [1, 2, 3], [])]
    for request, found in zip(requests, model.generate(requests, trie), strict=True):
        scores = score_items(model.backbone, request.history, trie.leaf_codes)
        order = np.argsort(-scores, kind="stable")
        assert found.leaves.tolist() == order.tolist()
        np.testing.assert_allclose(found.scores, scores[order], atol=1e-4)
