"""What a person may name as a backbone: each wrong thing is refused at once, saying what to do."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, PreTrainedTokenizerFast, T5Config, T5Model

import trainer.language_source
from service.catalog.trie import CODES, LEVELS
from service.errors import ConfigurationError
from tests.language_models import byte_tokenizer, llama, saved
from trainer.language_model import load_language_model, load_trainable, save_language_model, token_rows

HISTORY = np.array([[0, 1, 2, 3], [255, 254, 253, 252]], dtype=np.int16)


def only_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def only_gguf(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "model-q4.gguf").write_bytes(b"GGUF")


def an_adapter(folder: Path) -> None:
    shutil.rmtree(folder)
    get_peft_model(llama(300), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))


def a_weight_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:1000])


def no_next_token(folder: Path) -> None:
    T5Model(T5Config(vocab_size=700, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(folder)


def an_encoder(folder: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertLMHeadModel(BertConfig(vocab_size=700, **sizes)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (only_bin, r"weights as \.bin only.*safetensors"),
        (only_gguf, "GGUF"),
        (an_adapter, "PEFT adapter"),
        (no_tokenizer, "without a tokenizer"),
        (quantised, "quantised"),
        (a_weight_missing, "lacks 1 of its weights, .*up_proj"),
        (cut_short, "does not load"),
        (no_next_token, "no causal language model"),
        (an_encoder, "encoder.*families that work"),
        (lambda folder: (folder / "config.json").unlink(), "without a config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "no JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_folder_that_is_no_causal_model_is_refused(tmp_path: Path, spoil: Callable[[Path], object], why: str) -> None:
    spoil(saved(tmp_path / "model"))
    with pytest.raises(ConfigurationError, match=why):
        load_language_model(str(tmp_path / "model"), seed=0)


def test_a_tokenizer_without_start_end_and_padding_is_enough(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer).save_pretrained(folder)

    found = load_language_model(str(folder), seed=0)

    assert (found.tokenizer.pad_token, found.tokenizer.bos_token, found.tokenizer.eos_token) == (None, None, None)
    prompt = load_language_model(str(saved(tmp_path / "whole")), seed=0).backbone.prompt
    assert found.backbone.prompt.encode(HISTORY).tolist() == prompt.encode(HISTORY).tolist()


def test_a_head_of_its_own_is_kept_where_the_config_says_that_it_is_tied(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    head = load_file(folder / "model.safetensors")["lm_head.weight"].bfloat16().float()

    found = load_language_model(str(folder), seed=0)
    save_language_model(found, tmp_path / "base")
    again = load_trainable(tmp_path / "base", torch.device("cpu"))

    rows, own = token_rows(again.model)
    assert torch.equal(own[: len(head)], head)
    assert not torch.equal(rows[: len(head)], head)
    assert again.head.shape == (LEVELS, CODES, 32)


@contextmanager
def hub(status: int, code: str) -> Iterator[str]:
    """A model hub that refuses everything so."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def silent_hub() -> Iterator[str]:
    """A port where somebody listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [
        (403, "GatedRepo", "gated.*hf auth login"),
        (404, "RepoNotFound", "slip in its name"),
        (401, "RepoNotFound", "slip"),
    ],
)
def test_what_the_hub_refuses_is_told_apart(monkeypatch: pytest.MonkeyPatch, status: int, code: str, why: str) -> None:
    with hub(status, code) as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        with pytest.raises(ConfigurationError, match=why):
            load_language_model("somebody/a-model", seed=0)


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "nobody answers"])
def test_without_a_network_a_hub_id_fails_within_seconds_and_asks_for_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listens: bool
) -> None:
    monkeypatch.setattr(trainer.language_source, "HUB_TIMEOUT", 0.5)
    with silent_hub() as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address if listens else "http://127.0.0.1:9")
        started = time.monotonic()
        with pytest.raises(ConfigurationError, match=r"out of reach.*name a folder"):
            load_language_model("somebody/a-model", seed=0)
    assert time.monotonic() - started < 20  # the hub's own client alone takes 45 s


@pytest.mark.parametrize("name", ["./models/mine", "/nowhere/mine", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(name: str) -> None:
    with pytest.raises(ConfigurationError, match="folder that does not exist"):
        load_language_model(name, seed=0)


def test_what_can_be_no_id_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="neither a folder here nor an id"):
        load_language_model("my model", seed=0)
