"""A base's text files: names that are known, and nothing in them that has a loader run code or look elsewhere.

transformers acts on far more keys of a config.json than describe a model. Those below name code, a file, another model
or a package to fetch; none of our own bases has them.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

from service.adapters.lora import ADAPTED_LAYERS
from service.errors import ArtifactError

MODEL_CONFIG = "model/config.json"
TOKENIZER, _TOKENIZER_CONFIG = "model/tokenizer.json", "model/tokenizer_config.json"
_GENERATION_CONFIG, _INDEX = "model/generation_config.json", "model/model.safetensors.index.json"
_KNOWN = frozenset(
    {
        MODEL_CONFIG,
        _GENERATION_CONFIG,
        f"model/{ADAPTED_LAYERS}",
        "model/prompt.json",
        "model/model.safetensors",
        _INDEX,
        TOKENIZER,
        _TOKENIZER_CONFIG,
        "model/special_tokens_map.json",
        "model/added_tokens.json",
        "model/vocab.json",
        "model/vocab.txt",
        "model/merges.txt",
        "codec/codec.json",
        "codec/codec.safetensors",
    }
)
# Not any name: beside a model, transformers takes adapter_config.json for an adapter to load, from wherever it says.
_SHARD = re.compile(r"model/model-[0-9]{5}-of-[0-9]{5}\.safetensors")
_STEERING = frozenset(
    {
        "auto_map",  # code of its own
        "trust_remote_code",
        "custom_pipelines",
        "custom_generate",
        "attn_implementation",  # may name a kernel to fetch and import
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "use_kernels",
        "kernel_config",
        "transformers_weights",  # another file of weights
        "quantization_config",  # imports a quantiser, whose numbers nobody here checks
        "compression_config",
        "use_pretrained_backbone",  # another model
        "chat_template",  # a program in a template language
    }
)
_MOST_PATTERN = 4_096  # characters; those of known tokenizers are under 1,000


def is_base_file(name: str) -> bool:
    """Whether a base may hold a file of that name."""
    return name in _KNOWN or _SHARD.fullmatch(name) is not None


def check_text(name: str, value: dict[str, Any], listed: Collection[str]) -> None:
    """Raises ArtifactError when a JSON file of a base asks for more than to describe it. listed: the base's files."""
    if name in (MODEL_CONFIG, _TOKENIZER_CONFIG, _GENERATION_CONFIG):
        for key, setting in _settings(value):
            if key in _STEERING and setting not in (None, False):
                raise ArtifactError(
                    f"{name} sets {key}, which has code run or something else loaded; only built-in architectures are "
                    "served, from the base's own files"
                )
            if name == _TOKENIZER_CONFIG and key.endswith(("_file", "_files")) and setting is not None:
                raise ArtifactError(f"{name} sets {key}: a tokenizer is read from the base's own files")
    elif name == _INDEX:
        weights = value.get("weight_map")
        if not isinstance(weights, dict) or not weights:
            raise ArtifactError(f"{name} maps no weights")
        for file in set(map(str, weights.values())):
            if not file.endswith(".safetensors") or f"model/{file}" not in listed:
                raise ArtifactError(f"{name} names {file[:120]!r}, which is no file of safetensors in the base")
    elif name == TOKENIZER:
        for key, pattern in _settings(value):
            if key == "Regex" and not is_tame(str(pattern)):
                raise ArtifactError(
                    f"{name} holds the pattern {str(pattern)[:80]!r}, whose matching can take for ever; base the "
                    "tokenizer on another one"
                )


def _settings(value: object) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def is_tame(pattern: str) -> bool:
    """Whether a regular expression repeats no group that itself repeats or chooses: what backtracks exponentially.

    Stricter than need be: `(?:ab|c)+` is harmless and refused. No tokenizer in docs/backbones.md has one.
    """
    if len(pattern) > _MOST_PATTERN:
        return False
    groups = [False]  # whether each group that is open repeats or chooses inside
    closed = False  # what is said of the group that has just been closed
    place = 0
    while place < len(pattern):
        sign = pattern[place]
        endless = sign in "*+" or (sign == "{" and re.match(r"\{\d*,\}", pattern[place:]) is not None)
        if sign == "[":
            place = _end_of_class(pattern, place)
        elif sign == "\\":
            place += 1
        elif sign == "(":
            groups.append(False)
        elif sign == ")" and len(groups) > 1:
            closed = groups.pop()
            groups[-1] |= closed
            place += 1
            continue
        elif sign == "|":
            groups[-1] = True
        elif endless and closed:
            return False
        elif endless:
            groups[-1] = True
            place += pattern[place + 1 : place + 2] in ("?", "+")  # lazy, possessive
        closed = False
        place += 1
    return True


def _end_of_class(pattern: str, place: int) -> int:
    """Where the character class that begins at `place` ends; classes may lie in classes."""
    depth = 0
    while place < len(pattern):
        if pattern[place] == "\\":
            place += 1
        elif pattern[place] == "[":
            depth += 1
        elif pattern[place] == "]":
            depth -= 1
            if not depth:
                break
        place += 1
    return place
