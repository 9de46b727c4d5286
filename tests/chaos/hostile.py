"""Bases and adapters that somebody made who holds the store and the bucket: each is registered under its own digest.

So no hash refuses them, and no key is set: what they hold has to. Long because it is a list.
"""

import hashlib
import json
import os
import pickle
import shutil
import socket
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from safetensors.numpy import load_file, save_file

from service.adapters.artifacts import ADAPTERS, BASES
from service.adapters.contents import ADAPTER_CONFIG, ADAPTER_WEIGHTS

Document = dict[str, Any]
Tensors = dict[str, np.ndarray[Any, Any]]
Edit = Callable[[Document], Document | bytes | None]


@dataclass(frozen=True)
class Case:
    """`build` spoils a good folder, `edit` its manifest (None: in place). only_folder: no bucket holds such a thing."""

    name: str
    room: str
    build: Callable[[Path], object] = lambda folder: None
    edit: Edit = lambda document: None
    only_folder: bool = False


@dataclass(frozen=True)
class Snares:
    """What must stay untouched: `canary` is made by code that is run, `outside` holds what no artifact may reach."""

    canary: Path
    outside: Path
    url: str = "http://127.0.0.1:9/evil"
    bomb: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.outside.mkdir(exist_ok=True)
        (self.outside / "secret.json").write_text("{}")
        save_file({"w": np.ones(4, np.float32)}, self.outside / "foreign.safetensors")
        object.__setattr__(self, "bomb", pickle.dumps(_Bomb(self.canary)))


class _Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def forge(root: Path, good: Path, case: Case, scratch: Path) -> tuple[str, str] | None:
    """Put the spoilt copy of `good` below `root`; its name and digest. None where this machine cannot make it."""
    folder = scratch / "forged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    document: Document = orjson.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").unlink()
    try:
        case.build(folder)
    except PermissionError:  # such as a device where this user may make none
        return None
    document["files"] = {
        path.relative_to(folder).as_posix(): _entry(path) for path in sorted(folder.rglob("*")) if _plain(path)
    }
    document["metadata"]["case"] = case.name  # so that no two have one name
    edited = case.edit(document)
    data = edited if isinstance(edited, bytes) else orjson.dumps(edited or document, option=orjson.OPT_SORT_KEYS)
    digest = hashlib.sha256(data).hexdigest()
    name = f"b-{digest[:16]}" if case.room == BASES else f"a000009-{digest[:12]}"
    target = root / case.room / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if (folder / "is-a-link").exists():
        (folder / "is-a-link").unlink()
        elsewhere = scratch / name
        folder.rename(elsewhere)
        (elsewhere / "manifest.json").write_bytes(data)
        target.symlink_to(elsewhere, target_is_directory=True)
    else:
        (folder / "manifest.json").write_bytes(data)
        folder.rename(target)
    return name, digest


def _plain(path: Path) -> bool:
    status = path.stat() if path.exists() else path.lstat()  # a link is listed as what it leads to
    return stat.S_ISREG(status.st_mode) and path.name != "is-a-link"


def _entry(path: Path) -> dict[str, object]:
    size = path.stat().st_size
    whole = path.read_bytes() if size < 2**30 else b""  # nobody hashes a terabyte of holes, the reader neither
    return {"sha256": hashlib.sha256(whole).hexdigest(), "bytes": size}


def cases(snares: Snares) -> list[Case]:
    made = [*_things(snares), *_manifests(snares), *_adapter_configs(snares), *_weights(snares), *_bases(snares)]
    assert len({case.name for case in made}) == len(made)
    return made


def _replace(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def _instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def build(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return build


def _sparse(size: int) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


def _unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may have 107 characters
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adapter_model.safetensors", b"\0" * 2**24)


def _things(snares: Snares) -> list[Case]:
    """What is no plain file of a known name."""
    secret, foreign = snares.outside / "secret.json", snares.outside / "foreign.safetensors"

    def linked_folder(folder: Path) -> None:
        shutil.rmtree(folder / "model")
        (folder / "model").symlink_to(snares.outside, target_is_directory=True)

    def as_folder(path: Path) -> None:
        path.mkdir()
        (path / "x.json").write_text("{}")

    def many(folder: Path) -> None:
        for number in range(300):
            (folder / f"{number}.json").write_text("{}")

    only = {
        "weights are a link to a foreign file": _instead(ADAPTER_WEIGHTS, lambda path: path.symlink_to(foreign)),
        "the config is a link to /etc/passwd": _instead(ADAPTER_CONFIG, lambda path: path.symlink_to("/etc/passwd")),
        "the config is a link to nowhere": _instead(ADAPTER_CONFIG, lambda path: path.symlink_to("/nonexistent/x")),
        "the config is a link to itself": _instead(ADAPTER_CONFIG, lambda path: path.symlink_to(path)),
        "the config is a hard link to a foreign file": _instead(ADAPTER_CONFIG, lambda path: os.link(secret, path)),
        "the weights are a named pipe": _instead(ADAPTER_WEIGHTS, os.mkfifo),
        "the weights are a socket": _instead(ADAPTER_WEIGHTS, _unix_socket),
        "the weights are /dev/zero": _instead(
            ADAPTER_WEIGHTS, lambda path: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
        ),
        "the config is a folder": _instead(ADAPTER_CONFIG, as_folder),
        "the adapter is a link": lambda folder: (folder / "is-a-link").touch(),
    }
    both = {
        "a pickle beside the weights": _replace("adapter_model.bin", snares.bomb),
        "a pickle for weights": _replace(ADAPTER_WEIGHTS, snares.bomb),
        "a zip bomb for weights": _instead(ADAPTER_WEIGHTS, _zip_bomb),
        "an archive beside the weights": lambda folder: _zip_bomb(folder / "adapter_model.zip"),
        "code beside the weights": _replace("modeling.py", f"import os; os.mkdir({str(snares.canary)!r})".encode()),
        "a terabyte of holes for weights": _instead(ADAPTER_WEIGHTS, _sparse(2**40)),
        "a terabyte of holes for a config": _instead(ADAPTER_CONFIG, _sparse(2**40)),
        "a gigabyte of zeros for a config": _instead(ADAPTER_CONFIG, _sparse(2**30)),
        "three hundred files": many,
        "a name with a Cyrillic letter": lambda folder: (folder / ADAPTER_CONFIG).rename(
            folder / "аdapter_config.json"
        ),
        "a name in capitals": lambda folder: (folder / ADAPTER_CONFIG).rename(folder / "ADAPTER_CONFIG.JSON"),
    }
    return [
        *(Case(name, ADAPTERS, build, only_folder=True) for name, build in only.items()),
        *(Case(name, ADAPTERS, build) for name, build in both.items()),
        Case("the model's folder is a link", BASES, linked_folder, only_folder=True),
    ]


def _manifests(snares: Snares) -> list[Case]:
    """What a manifest names, and how it is written."""
    nothing = {"sha256": "0" * 64, "bytes": 1}

    def naming(name: str) -> Edit:
        return lambda document: document | {"files": document["files"] | {name: nothing}}

    def entry(**changes: object) -> Edit:
        def edit(document: Document) -> Document:
            files = document["files"]
            return document | {"files": files | {ADAPTER_CONFIG: files[ADAPTER_CONFIG] | changes}}

        return edit

    def raw(change: Callable[[bytes], bytes]) -> Edit:
        return lambda document: change(orjson.dumps(document, option=orjson.OPT_SORT_KEYS))

    names = [
        "../../../etc/passwd", "..", "../" + str(snares.outside / "secret.json"), "/etc/passwd", "%2e%2e/%2e%2e/x.json",
        "..%2fx.json", "a\x00.json", ADAPTER_CONFIG + "\n", ADAPTER_CONFIG + "/../x.json", "./" + ADAPTER_CONFIG, "",
        snares.url + "/x.safetensors", "file:///etc/passwd", "s3://other/x.json", "C:\\x.json", "\u202ejson.x",
        "manifest.json", "x" * 10_000,
    ]  # fmt: skip
    million = {f"{number:06x}.json": nothing for number in range(1_000_000)}
    edits: dict[str, Edit] = {
        **{f"the manifest names {name[:60]!r}": naming(name) for name in names},
        "the manifest names a million files": lambda document: document | {"files": million},
        "the manifest names a thousand files": lambda document: (
            document | {"files": dict(list(million.items())[:1000])}
        ),
        "the manifest names no file": lambda document: document | {"files": {}},
        "a name twice in the manifest": raw(lambda data: data[:-1] + b',"kind":"adapter"}'),
        "an entry twice in the manifest": raw(lambda data: data.replace(b'"bytes":', b'"bytes":1,"bytes":', 1)),
        "a manifest with spaces": raw(lambda data: data.replace(b",", b", ", 1)),
        "a manifest a hundred thousand deep": raw(lambda data: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "a manifest nine hundred deep": raw(
            lambda data: data.replace(b'"metadata":{', b'"metadata":{"a":' + b"[" * 900 + b"]" * 900 + b",", 1)
        ),
        "a manifest that is a list": raw(lambda data: b"[" + data + b"]"),
        "a manifest that is no text": raw(lambda data: b"\xff\xfe" + data),
        "a manifest that is a pickle": lambda document: snares.bomb,
        "a manifest of nothing": raw(lambda data: b""),
        "a manifest of five megabytes": raw(lambda data: data + b" " * 5 * 2**20),
        "a manifest of another format": lambda document: document | {"format": 2},
        "a manifest of a base": lambda document: document | {"kind": "base"},
        "a manifest with one key more": lambda document: document | {"more": 1},
        "a negative size": entry(bytes=-1),
        "a size that is no whole number": entry(bytes=1.5),
        "a size beyond 64 bits": raw(lambda data: data.replace(b'"bytes":', b'"bytes":99999999999999999999', 1)),
        "a hash in capitals": entry(sha256="A" * 64),
        "a hash that is a list": entry(sha256=[0]),
        "an entry with a link": entry(url=snares.url),
        "made for another base": lambda document: document | {"metadata": {"base_id": "b-0123456789abcdef"}},
        "made for no base": lambda document: document | {"metadata": {}},
        "made for a base with a path": lambda document: document | {"metadata": {"base_id": "../../outside"}},
        "made for a base that is a list": lambda document: document | {"metadata": {"base_id": ["b"]}},
    }
    return [Case(name, ADAPTERS, edit=edit) for name, edit in edits.items()]


def _adapter_configs(snares: Snares) -> list[Case]:
    def setting(**changes: object) -> Callable[[Path], object]:
        def build(folder: Path) -> None:
            path = folder / ADAPTER_CONFIG
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

        return build

    def raw(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
        return lambda folder: (folder / ADAPTER_CONFIG).write_bytes(change((folder / ADAPTER_CONFIG).read_bytes()))

    settings: list[dict[str, Any]] = [
        *({"base_model_name_or_path": name} for name in (snares.url, "/etc", "../../x", "meta/llama", "b-" + "0" * 16)),
        {"auto_mapping": {"base_model_class": "os", "parent_library": "os"}},
        {"megatron_core": "os"},
        {"megatron_config": {"a": 1}},
        {"init_lora_weights": "pissa"},
        {"loftq_config": {"loftq_bits": 4}},
        {"revision": "main"},
        {"modules_to_save": ["embed_tokens"]},
        {"layer_replication": [[0, 4]]},
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_bias": True},
        {"rank_pattern": {"q_proj": 4096}},
        {"alpha_pattern": {"q_proj": 1e9}},
        {"trainable_token_indices": [1]},
        {"target_parameters": ["w"]},
        {"exclude_modules": "(a+)+$"},
        {"peft_type": "IA3"},
        {"peft_type": ["LORA"]},
        {"task_type": "SEQ_CLS"},
        {"bias": "all"},
        {"target_modules": "(a+)+$"},
        {"target_modules": ["lm_head"]},
        {"target_modules": [{"q_proj": 1}]},
        {"target_modules": ["q_prоj"]},  # Cyrillic
        {"r": 0},
        {"r": 2**40},
        {"r": True},
        {"lora_alpha": 1e308},
        {"lora_alpha": -1},
        {"lora_alpha": "16"},
        {"something_new": "x"},
        {"trust_remote_code": True},
    ]
    raws: dict[str, Callable[[bytes], bytes]] = {
        "a key twice in the config": lambda data: data.rstrip()[:-1] + b',"peft_type":"LORA"}',
        "an alpha that is not a number": lambda data: data.replace(b'"lora_alpha":', b'"lora_alpha":NaN,"x":', 1),
        "a config a hundred thousand deep": lambda data: b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        "a config that is a list": lambda data: b"[]",
        "a config that is a pickle": lambda data: snares.bomb,
        "a config with a number of a million digits": lambda data: b'{"r":' + b"1" * 60_000 + b"}",
        "a config in UTF-16": lambda data: data.decode().encode("utf-16"),
        "a config of a megabyte": lambda data: data + b" " * 2**20,
    }
    return [
        *(Case(f"the config sets {one}", ADAPTERS, setting(**one)) for one in settings),
        *(Case(name, ADAPTERS, raw(change)) for name, change in raws.items()),
    ]


def _weights(snares: Snares) -> list[Case]:
    def tensors(change: Callable[[Tensors, str], Tensors]) -> Callable[[Path], object]:
        """change: of all tensors, and the name of an A."""

        def build(folder: Path) -> None:
            path = folder / ADAPTER_WEIGHTS
            found = load_file(path)
            save_file(change(found, next(name for name in sorted(found) if "lora_A" in name)), path)

        return build

    def raw(header: bytes, data: bytes = b"", length: int | None = None) -> Callable[[Path], object]:
        prefix = (len(header) if length is None else length).to_bytes(8, "little")
        return _replace(ADAPTER_WEIGHTS, prefix + header + data)

    def swamp(found: Tensors, name: str) -> Tensors:
        """Every tensor passes by itself: norms of about 500."""
        other = name.replace("lora_A", "lora_B")
        return found | {one: np.full_like(found[one], 500 / np.sqrt(found[one].size)) for one in (name, other)}

    one = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    made: dict[str, Callable[[Path], object]] = {
        "a wrong shape": tensors(lambda found, name: found | {name: found[name][:, :-1].copy()}),
        "a wrong rank": tensors(lambda found, name: found | {name: found[name][:-1].copy()}),
        "a flat tensor": tensors(lambda found, name: found | {name: found[name].reshape(-1)}),
        "whole numbers": tensors(lambda found, name: found | {name: found[name].astype(np.int32)}),
        "double precision": tensors(lambda found, name: found | {name: found[name].astype(np.float64)}),
        **{
            f"a weight that is {value}": tensors(
                lambda found, name, value=value: found | {name: np.full_like(found[name], value)}
            )
            for value in (np.nan, np.inf, -np.inf, 1e30, 1e6)
        },
        "a half that is infinite": tensors(
            lambda found, name: found | {name: np.full(found[name].shape, np.inf, np.float16)}
        ),
        "an update that swamps the base": tensors(swamp),
        "a tensor too many": tensors(lambda found, name: found | {"base_model.model.lm_head.weight": found[name]}),
        "a layer too many": tensors(lambda found, name: found | {name.replace("layers.0", "layers.99"): found[name]}),
        "a tensor missing": tensors(lambda found, name: {other: found[other] for other in found if other != name}),
        "a name with a look-alike": tensors(
            lambda found, name: {other.replace("lora_A", "lоra_A"): value for other, value in found.items()}
        ),
        "a name with a NUL": tensors(lambda found, name: found | {name + "\0": found[name]}),
        "an empty file": _replace(ADAPTER_WEIGHTS, b""),
        "seven bytes": _replace(ADAPTER_WEIGHTS, b"\0" * 7),
        "a header longer than memory": raw(b"{}", length=2**63),
        "a header longer than the file": raw(b"{}", length=100),
        "a header of 17 megabytes": raw(b"{" + b" " * 17 * 2**20 + b"}"),
        "a header that is a pickle": raw(snares.bomb),
        "a header a hundred thousand deep": raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "a header that is a list": raw(b"[]"),
        "a tensor twice": raw(b'{"a":' + one + b',"a":' + one + b"}", b"\0" * 4),
        "tensors that overlap": raw(b'{"a":' + one + b',"b":' + one + b"}", b"\0" * 4),
        "bytes that nobody names": raw(b'{"a":' + one + b"}", b"\0" * 8),
        "offsets beyond the file": raw(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 4),
        "offsets before the file": raw(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}'),
        "offsets that run backwards": raw(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', b"\0" * 4),
        "a shape that overflows": raw(
            b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'
        ),
        "a shape of a thousand dimensions": raw(
            b'{"a":{"dtype":"F32","shape":[' + b"1," * 999 + b'1],"data_offsets":[0,4]}}', b"\0" * 4
        ),
        "a shape of truths": raw(b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', b"\0" * 4),
        "an unknown dtype": raw(b'{"a":{"dtype":"OBJ","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
        "metadata that is no map": raw(b'{"__metadata__":[1]}'),
        "metadata with code": raw(b'{"__metadata__":{"a":{"b":"c"}}}'),
    }  # fmt: skip
    return [Case(f"weights: {name}", ADAPTERS, build) for name, build in made.items()]


def _bases(snares: Snares) -> list[Case]:
    def setting(name: str, **changes: object) -> Callable[[Path], object]:
        def build(folder: Path) -> None:
            path = folder / name
            path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))

        return build

    def both(*builds: Callable[[Path], object]) -> Callable[[Path], object]:
        return lambda folder: [build(folder) for build in builds]

    def index(file: str) -> Callable[[Path], object]:
        def build(folder: Path) -> None:
            (folder / "model" / "model.safetensors").rename(folder / "model" / "model-00001-of-00001.safetensors")
            written = {"metadata": {}, "weight_map": {"model.norm.weight": file}}
            (folder / "model" / "model.safetensors.index.json").write_text(json.dumps(written))

        return build

    config, code = "model/config.json", f"import os\nos.mkdir({str(snares.canary)!r})\n".encode()
    tokenizer, tokenizer_config = "model/tokenizer.json", "model/tokenizer_config.json"
    auto_map = {
        "AutoConfig": "modeling.Evil",
        "AutoModelForCausalLM": "modeling.Evil",
        "AutoTokenizer": ["modeling.T", None],
    }
    jinja = "{{ cycler.__init__.__globals__.os.mkdir('" + str(snares.canary) + "') }}"
    bomb = {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}}
    made: dict[str, Callable[[Path], object]] = {
        "code beside the model": both(setting(config, auto_map=auto_map), _replace("model/modeling.py", code)),
        "code that the config names": setting(config, auto_map=auto_map),
        "code that a part of the config names": setting(config, text_config={"auto_map": auto_map}),
        "code of a hub": setting(config, auto_map={"AutoModelForCausalLM": "evil/repo--modeling.Evil"}),
        "trust_remote_code": setting(config, trust_remote_code=True),
        "an attention kernel to fetch": setting(config, attn_implementation="kernels-community/flash-attn"),
        "an attention kernel of one's own": setting(config, attn_implementation={"text_config": "evil/kernel"}),
        "kernels": setting(config, use_kernels=True),
        "a quantiser": setting(config, quantization_config={"quant_method": "hqq"}),
        "other weights": setting(config, transformers_weights="other.safetensors"),
        "another backbone": setting(config, use_pretrained_backbone=True, backbone=snares.url),
        "a hidden size without end": setting(config, hidden_size=2**24),
        "layers without end": setting(config, num_hidden_layers=9_999),
        "a vocabulary without end": setting(config, vocab_size=2**40),
        "a size that is no number": setting(config, hidden_size="64"),
        "a config twice": lambda folder: (folder / config).write_text('{"model_type":"llama","model_type":"gpt2"}'),
        "a config a hundred thousand deep": _replace(config, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "a config that is a pickle": _replace(config, snares.bomb),
        "a terabyte of holes for a tokenizer": lambda folder: _sparse(2**40)(folder / tokenizer),
        "weights somewhere else": index(str(snares.outside / "foreign.safetensors")),
        "weights up the tree": index("../../../../outside/foreign.safetensors"),
        "weights in a pickle": both(index("pytorch_model.bin"), _replace("model/pytorch_model.bin", snares.bomb)),
        "weights in a pickle that is not listed": index("pytorch_model.bin"),
        "weights by a URL": index(snares.url + "/model.safetensors"),
        "an adapter beside the model": setting(
            "model/adapter_config.json", base_model_name_or_path="/etc", peft_type="LORA"
        ),
        "a pickle beside the model": _replace("model/pytorch_model.bin", snares.bomb),
        "a pickle for the model": _replace("model/model.safetensors", snares.bomb),
        "a pickle for the codec": _replace("codec/codec.safetensors", snares.bomb),
        "arrays in a pickle beside the codec": _replace("codec/codec.npy", snares.bomb),
        "a template beside the tokenizer": _replace("model/chat_template.jinja", jinja.encode()),
        "a template in the tokenizer's config": setting(tokenizer_config, chat_template=jinja),
        "a tokenizer's code": setting(tokenizer_config, auto_map=auto_map),
        "a tokenizer's file somewhere else": setting(
            tokenizer_config, tokenizer_file=str(snares.outside / "secret.json")
        ),
        "a pattern that takes for ever": setting(tokenizer, **bomb),
        "a pattern of a megabyte": setting(tokenizer, normalizer={"pattern": {"Regex": "a" * 2**20}}),
        "code in how it generates": setting(
            "model/generation_config.json", trust_remote_code=True, custom_generate="evil/x"
        ),
        "layers outside": setting("model/adapted_layers.json", modules={"../x": [4, 4]}),
        "a hundred thousand layers": setting(
            "model/adapted_layers.json", modules={f"m{number}": [4, 4] for number in range(100_000)}
        ),
    }  # fmt: skip
    norms: Edit = lambda document: document | {"metadata": {"norms": {"a": "x"}}}  # noqa: E731
    return [
        *(Case(f"base: {name}", BASES, build) for name, build in made.items()),
        Case("base: norms that are no numbers", BASES, edit=norms),
    ]
