"""The one settings object; `python -m service.settings` prints its table. Long because it is the only one.

A field is `ADAPTIDE_` + its name in capitals; an unknown ADAPTIDE_ variable is an error.
"""

import json
import os
import re
import sys
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self, get_args
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from service import production
from service.errors import ConfigurationError
from service.kit import crash_points

PREFIX = "ADAPTIDE_"
SHORTEST_KEY = 32
"""Characters of a key to sign with: a signature by a key that can be guessed can be forged elsewhere."""
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?")


class Environment(StrEnum):
    DEVELOPMENT = "development"
    PRODUCTION = "production"


class EngineName(StrEnum):
    TORCH = "torch"
    VLLM = "vllm"


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Pooler(StrEnum):
    """What stands between this process and PostgreSQL."""

    NONE = "none"
    TRANSACTION = "transaction"


class FilterMode(StrEnum):
    """What happens when a request's filters leave fewer items than are wanted."""

    STRICT = "strict"
    """The list is shorter."""
    RELAXED = "relaxed"
    """Items that do not match fill the places that are left, behind those that do."""


class Promote(StrEnum):
    """What becomes of a candidate that held at the gate."""

    AT_ONCE = "at_once"
    CANARY = "canary"


class GroupBy(StrEnum):
    """What one softmax of the proximal spans (METHODS.md, notation)."""

    TENSOR = "tensor"
    MODULE = "module"
    RANK = "rank"
    LAYER = "layer"


Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseSettings):
    """All settings, read once from the environment and passed in. Durations accept seconds or ISO 8601 (`PT1H`)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, use_attribute_docstrings=True)

    environment: Environment = Environment.DEVELOPMENT
    """`production` refuses to start on defaults, missing or well-known secrets, and names all of them at once."""
    home: Path = Path("~/.adaptide")
    """Folder for the default database, artifacts and downloaded data sets."""
    database_url: SecretStr = SecretStr("")
    """SQLAlchemy URL. Empty: SQLite at HOME/adaptide.db. PostgreSQL: postgresql://user:password@host/name."""
    redis_url: SecretStr = SecretStr("")
    """Redis 7 or newer, redis://[[user]:password@]host[:port][/number]. Empty: none; replicas poll (docs/redis.md)."""
    redis_prefix: Annotated[str, Field(min_length=1, max_length=64, pattern="^[A-Za-z0-9._-]+$")] = "adaptide"
    """What every key begins with: one for each store, the same for all that use that store."""
    redis_timeout: Annotated[timedelta, Field(gt=timedelta(0))] = timedelta(seconds=0.1)
    """How long one answer of Redis may take before it counts as away."""
    database_pool_size: Positive = 10
    """Connections that a process keeps open at most while it has nothing for them to do; the updater: 4 at most."""
    database_pool_overflow: Annotated[int, Field(ge=0)] = 10
    """Connections more that it opens while all of those are busy."""
    database_pool_timeout: timedelta = timedelta(seconds=10)
    """How long a transaction waits for one of them."""
    database_connect_timeout: timedelta = timedelta(seconds=3)
    """PostgreSQL: how long connecting may take (2 s at least)."""
    database_lock_timeout: timedelta = timedelta(seconds=10)
    """How long a statement waits for a lock (on SQLite: a writer for its turn)."""
    database_statement_timeout: timedelta = timedelta(minutes=1)
    """PostgreSQL: how long a statement of `serve` may run; 0: for ever. Updates, imports and migrations: no limit."""
    database_answer_timeout: Annotated[timedelta, Field(gt=timedelta(0))] = timedelta(seconds=1.5)
    """PostgreSQL: a request waits for the store so long; then events get 503, and recommendations do without it. On
    either store, one that writes waits so long for its turn."""
    keys_without_store: Annotated[timedelta, Field(ge=timedelta(0))] = timedelta(minutes=5)
    """While the store does not answer, a key that a replica has looked up this long ago at most may go on reading there
    (docs/access.md); a key revoked meanwhile reads as long."""
    database_pooler: Pooler = Pooler.NONE
    """`transaction` behind pgbouncer or the like in transaction mode: no prepared statements, no start-up options."""
    event_partition: Annotated[timedelta, Field(ge=timedelta(hours=1))] = timedelta(days=30)
    """PostgreSQL: about how much time one partition of events holds, which is made for a million events at least."""
    event_retention: Annotated[timedelta | None, Field(ge=timedelta(days=1))] = None
    """Events of finished windows sealed longer ago are removed; empty: never."""
    recommendation_retention: Annotated[timedelta | None, Field(ge=timedelta(days=1))] = None
    """Recommendations made longer ago are removed; empty: as EVENT_RETENTION says."""
    quality_horizon: Annotated[timedelta | None, Field(ge=timedelta(seconds=1), le=timedelta(days=30))] = timedelta(
        days=1
    )
    """An event is credited to a recommendation made at most so long before (docs/quality.md); empty: nothing is."""
    quality_lateness: Annotated[timedelta, Field(ge=timedelta(0), le=timedelta(days=7))] = timedelta(hours=1)
    """So much longer is waited for events that are sent late, before a recommendation is counted."""
    quality_bucket: Annotated[timedelta, Field(ge=timedelta(seconds=1), le=timedelta(days=1))] = timedelta(hours=1)
    """Recommendations made within the same so much time are counted together."""
    quality_retention: Annotated[timedelta | None, Field(ge=timedelta(days=1))] = timedelta(days=400)
    """These counts are removed when they are older; empty: never. They name no user."""
    artifacts_url: str = ""
    """Folder of bases and adapters, or s3://BUCKET/PREFIX, gs://, az://, any URL of fsspec's. Empty: HOME/artifacts."""
    artifacts_cache_bytes: Positive = 32 * 2**30
    """What artifacts fetched from a URL may take in HOME/cache/artifacts; the longest unused are removed first."""
    artifacts_timeout: timedelta = timedelta(seconds=30)
    """A request to an object store is given up after this."""
    artifacts_keep: Positive = 10
    """Garbage collection keeps so many of the newest adapters, and so many to roll back through."""
    artifacts_grace: Annotated[timedelta, Field(ge=timedelta(minutes=10))] = timedelta(days=1)
    """Garbage collection leaves alone what is younger than this (what is on its way to be registered, above all)."""
    artifacts_collect: bool = False
    """The updater collects garbage by itself after each adapter it publishes."""
    signing_key: SecretStr = SecretStr("")
    """Signs what is published and refuses what is not signed (docs/artifacts.md); 32 characters or more. Empty: no."""
    signing_keys_accepted: SecretStr = SecretStr("")
    """Keys that count beside it while it changes, separated by commas."""
    heartbeat_interval: timedelta = timedelta(seconds=5)
    """How often a replica writes to the store what it serves."""
    host: str = "127.0.0.1"
    """Address that `adaptide serve` binds."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port that `adaptide serve` binds; 0 picks a free one."""
    drain: Annotated[timedelta, Field(ge=timedelta(0), le=timedelta(seconds=15))] = timedelta(0)
    """After SIGTERM `serve` is not ready but answers for this long, so that balancers look away first; 5 behind one."""
    trainer_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port on which `trainer run` shows its metrics (at HOST, as /metrics); 0: none."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    traces: bool = False
    """OpenTelemetry traces over OTLP/HTTP to OTEL_EXPORTER_OTLP_ENDPOINT; needs the extra `otel` (docs/operate.md)."""

    engine: EngineName = EngineName.TORCH
    """What generates: torch, or vllm, which is installed by hand (docs/vllm.md)."""
    device: Device = Device.AUTO
    """Where the engine and the trainer compute; auto takes CUDA when there is one."""
    dtype: Dtype = Dtype.AUTO
    """Weights of the served model; auto is float32 on a CPU, bfloat16 on a GPU."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of a search; 0: `serve` times the first model with 1, 2, 4, .. and takes what pays; vllm: all."""
    compile: bool = True
    """On a GPU: fuse the forward pass before searches are captured; without, starts are shorter and searches longer."""
    vllm_tensor_parallel: Positive = 1
    """With vllm: GPUs that share one copy of the model."""
    vllm_memory_share: Annotated[float, Field(gt=0, le=0.95)] = 0.45
    """With vllm: share of a GPU's memory for weights and cache; above 0.47 a new base does not fit beside the old."""
    vllm_kv_cache_gib: Annotated[float, Field(ge=0)] = 0.0
    """With vllm: size of the key-value cache; 0: what the share leaves on a GPU, 1 GiB on a CPU."""
    vllm_max_lora_rank: Annotated[int, Field(ge=1, le=512)] = 64
    """With vllm: largest rank of an adapter; room for it is reserved. Cumulative methods add up their ranks."""
    beams: Annotated[int, Field(ge=1, le=1000)] = 10
    """Least beam width (paper: 10). A request for more items widens its own beam to its limit."""
    history_items: Annotated[int, Field(ge=1, le=200)] = 20
    """Items of a user's history that the prompt holds (paper: 20)."""
    seen_items: Positive = 5_000
    """Latest distinct items of a user that count as seen and are excluded."""
    batch_max_requests: Positive = 32
    """Recommendation requests generated together at most; of a crowd, half at a time."""
    request_deadline: timedelta = timedelta(seconds=2)
    """After this a recommendation falls back to popularity, with the reason in the reply."""
    queue_patience: timedelta = timedelta(seconds=0.5)
    """A queue of requests that stood for this long is not a burst: more are refused at once (docs/overload.md)."""
    filter_mode: FilterMode = FilterMode.STRICT
    """When filters leave fewer items than are wanted: `strict`, a shorter list; `relaxed`, filled with others."""
    exploration_share: Fraction = 0.0
    """Share of each list that goes to cold items (docs/recommendations.md); 0: none."""
    exploration_events: Positive = 5
    """An item with fewer interactions than this is cold; older ones count less, as for popularity."""
    explain_timeout: Annotated[timedelta, Field(ge=timedelta(0))] = timedelta(seconds=1)
    """How long `explain` may look for the past items behind a reply, with the model; 0: not at all."""
    ignored_event_types: frozenset[str] = frozenset({"impression"})
    """Event types that are stored but are no interactions: not in history, training or popularity."""
    popularity_half_life: timedelta = timedelta(days=30)
    """Age (in event time) at which an interaction counts half for popularity."""
    popularity_refresh: timedelta = timedelta(seconds=2)
    """How often a replica adds new events to its popularity counts."""
    history_cache: Annotated[timedelta, Field(ge=timedelta(0), le=timedelta(seconds=50))] = timedelta(seconds=30)
    """How long Redis may keep a user's past, which new events end at once (docs/decisions/0018); 0: not at all.

    50 s at most: a minute after a user's erasure, what is recorded is taken for made without the user's past.
    """
    recommendation_cache: Annotated[timedelta, Field(ge=timedelta(0), le=timedelta(minutes=1))] = timedelta(0)
    """How long Redis may keep what was generated for exactly the same question, such as 5 s; 0: not at all."""
    rate_limit: Annotated[float, Field(ge=0)] = 0.0
    """Requests a second for each API key, by all replicas together with Redis, by each one without; 0: no limit."""
    rate_limit_burst: Positive = 100
    """Requests that a key may send at once after a pause."""
    failure_limit: Annotated[float, Field(ge=0)] = 1.0
    """Requests a second without a good key that each client address may send to a replica; 0: no limit."""
    failure_limit_burst: Positive = 100
    """Requests without a good key that an address may send at once after a pause."""
    trusted_proxies: str = "127.0.0.1,::1"
    """Addresses and networks, by commas, whose X-Forwarded-For and X-Forwarded-Proto `serve` believes; * : all."""
    cors_origins: frozenset[str] = frozenset()
    """Origins whose pages may call the API from a browser, such as https://shop.example; never with cookies."""
    docs: bool | None = None
    """Serve /docs and /openapi.json; empty: not in production, for /docs runs a script that comes from elsewhere."""
    poll_interval: timedelta = timedelta(seconds=0.5)
    """How often a replica asks the store for a new active adapter or changed items."""
    clock_tolerance: timedelta = timedelta(minutes=5)
    """How far in the future an event may lie before it is refused (code future_event)."""
    max_body_bytes: Positive = 1_048_576
    """Largest request body (CONTRACT: 1 MiB)."""
    intake_max_requests: Positive = 256
    """Requests with events or items that a process works on or lets wait; more get 503: a second or two of a disk."""
    intake_max_bytes: Positive = 8 * 2**20
    """What their bodies may have together, those of recommendations half of it besides; else 503. 75 batches of 500."""

    window_max_age: timedelta = timedelta(hours=1)
    """An open window with enough events is sealed at this age."""
    window_max_events: Positive = 10_000
    """An open window is sealed at this many events."""
    window_min_events: Positive = 100
    """A window is not sealed by age below this many events."""
    min_events_per_user: Annotated[int, Field(ge=3)] = 5
    """Users with fewer interactions in a window are left out of its training and evaluation (paper: 5)."""
    window_max_events_per_user: Positive = 1_000
    """Of one user in a window so many interactions are trained on at most, the latest (docs/decisions/0025)."""
    window_max_user_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """No user is more of a window's or a base's training than this, or twice an equal share; 1: no limit."""
    window_max_repeats: Positive = 3
    """Of one user in a window so often an item is trained on at most."""
    tick_interval: timedelta = timedelta(seconds=1)
    """How often the updater looks for work."""
    lease_duration: timedelta = timedelta(seconds=30)
    """A crashed updater's work can be taken over after this long; the same for all updaters."""
    window_attempts: Positive = 3
    """An update that failed this often stays failed, and later windows go on. One that was stopped, or that a moved
    pointer or an erased learner overtook, does not count. Raised, windows that were given up are tried again, after
    later ones.
    """
    window_retry_pause: Annotated[timedelta, Field(ge=timedelta(0))] = timedelta(seconds=30)
    """How long a window waits after its first failure; twice as long after the next, up to an hour."""
    update_timeout: Annotated[timedelta | None, Field(gt=timedelta(0))] = None
    """An attempt at an update that takes longer is abandoned between two steps and counts as failed; empty: none is."""
    update_memory_bytes: Annotated[int, Field(ge=0)] = 0
    """The same for memory, resident in the updater and its training processes together; 0: no limit."""
    update_silence: Annotated[timedelta, Field(gt=timedelta(0))] = timedelta(hours=1)
    """An update that shows no progress for so long hangs: its window is another updater's (docs/operate.md)."""

    method: str = "peso"
    """Continual method of the updater; `adaptide backtest --list-methods` names them."""
    proximal_weight: Annotated[float, Field(ge=0)] = 2.0
    """Lambda of the regulariser (paper: 2 to 5)."""
    proximal_relative: bool = False
    """Lambda is the regulariser's share of the first step's gradient instead, which carries over between models."""
    proximal_group_by: GroupBy = GroupBy.TENSOR
    """What one softmax spans; tensor is what the paper's authors run."""
    lora_rank: Positive = 16
    """LoRA r of the next base's adapters; one that evolves keeps its own (paper: 8; docs/decisions/0039)."""
    lora_alpha: Positive = 32
    """LoRA alpha of the next base's adapters, as above; the scale is alpha / r (paper: 16)."""
    lora_dropout: Fraction = 0.0
    """Dropout before LoRA A while training (paper: 0.05); 0 trains about twice as fast (docs/decisions/0007)."""
    learning_rate_base: Annotated[float, Field(gt=0)] = 3e-3
    """Peak AdamW rate of the base (D_1)."""
    learning_rate_update: Annotated[float, Field(gt=0)] = 4e-3
    """Peak AdamW rate of a window's update (docs/decisions/0010); a pretrained language model wants about 3e-4."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW weight decay of an update (paper: 0.01)."""
    update_epochs: Positive = 8
    """Passes over a window at least (paper: 4); the best by validation is kept, the starting point included."""
    update_min_steps: Annotated[int, Field(ge=0)] = 600
    """Optimiser steps of an update at least: a small window is passed over more often, up to 20 times."""
    update_batch_size: Positive = 8
    """Sequences in one optimiser step of an update."""
    embedding_dropout: Fraction = 0.2
    """Dropout on token embeddings while training; a small model overfits within a few passes without it."""
    residual_dropout: Fraction = 0.1
    """Dropout on what attention and MLP add to the residual stream while training."""
    evaluation_users: Positive = 2_000
    """Users scored at most when a window is evaluated (a seeded sample above that)."""
    evaluation_items_per_user: Positive = 10
    """Next items of a user that judge the serving model when a window closes, before it is trained on."""
    seed: int = 0
    """Seed of everything random in training."""
    processes: Positive = 1
    """Processes that train an update or a base together, on this machine: one a GPU, or sharing the cores of a CPU."""
    shard: bool = False
    """Spread the model's blocks over those processes while training (FSDP), for a model too large for one device."""
    processes_timeout: timedelta = timedelta(minutes=10)
    """A training process that says nothing for this long fails the attempt; longer than an evaluation must take."""
    checkpoint_interval: timedelta = timedelta(seconds=60)
    """How much training a killed update or base build may lose; it goes on from HOME/checkpoints. 0: never kept."""

    promote: Promote = Promote.AT_ONCE
    """`canary`: a candidate that held at the gate answers CANARY_SHARE of the users first; windows wait meanwhile."""
    canary_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Of users, picked by a hash of their id (docs/trials.md)."""
    canary_duration: Annotated[timedelta, Field(gt=timedelta(0))] = timedelta(days=1)
    """After so long the updater promotes it, unless the trial was ended or changed by somebody."""
    gate_min_users: Positive = 20
    """Fewer scorable users than this: the candidate is refused."""
    gate_tolerance: Annotated[float, Field(ge=0)] = 0.25
    """Relative loss of NDCG@10 against the incumbent that is tolerated when the bootstrap cannot exclude it."""
    gate_confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence of the gate's paired bootstrap interval."""

    rollback_automatic: bool = False
    """Roll back by itself when the serving version's live hit rate falls below the previous one's (docs/quality.md)."""
    rollback_alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.05
    """Chance at most that a version that is no worse is rolled back, over all looks at it together."""
    rollback_margin: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Only a loss of surely more than this share of the previous version's hit rate counts."""
    rollback_min_recommendations: Annotated[int, Field(ge=100)] = 1_000
    """Of each side so many counted recommendations at least, before anything is decided."""
    rollback_uncontrolled: bool = False
    """Decide also where nothing tells a worse version from a worse time: neither an experiment nor popular lists."""

    @field_validator("*", mode="before")
    @classmethod
    def _plain_seconds(cls, value: object, info: ValidationInfo) -> object:
        # pydantic takes a number for seconds, but the environment can only say "2.5"
        field = cls.model_fields[info.field_name or ""]
        if value == "" and field.default is None:
            return None
        if isinstance(value, str) and (field.annotation is timedelta or timedelta in get_args(field.annotation)):
            try:
                return timedelta(seconds=float(value))
            except (ValueError, OverflowError):
                return value
        return value

    @field_validator("cors_origins")
    @classmethod
    def _exact_origins(cls, origins: frozenset[str]) -> frozenset[str]:
        if wrong := sorted(origin for origin in origins if not _ORIGIN.fullmatch(origin)):
            raise ValueError(
                f"{', '.join(wrong)}: an origin is a scheme and a host, such as https://shop.example; no *"
            )
        return origins

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.environment is Environment.PRODUCTION and (faults := production.faults(self, os.environ)):
            raise ValueError(f"ADAPTIDE_ENVIRONMENT=production refuses to start until {'; '.join(faults)}")
        if self.intake_max_bytes < self.max_body_bytes:
            raise ValueError("ADAPTIDE_INTAKE_MAX_BYTES must hold a body of ADAPTIDE_MAX_BODY_BYTES at least")
        if self.window_max_events_per_user < self.min_events_per_user:
            raise ValueError("ADAPTIDE_WINDOW_MAX_EVENTS_PER_USER must not be below ADAPTIDE_MIN_EVENTS_PER_USER")
        if self.keys_accepted and not self.signing_key.get_secret_value():
            raise ValueError("ADAPTIDE_SIGNING_KEYS_ACCEPTED needs ADAPTIDE_SIGNING_KEY: without it nothing is signed")
        for key in filter(None, (self.signing_key.get_secret_value(), *self.keys_accepted)):
            if len(key) < SHORTEST_KEY or not key.isprintable() or " " in key or "," in key:
                raise ValueError(
                    f"a key to sign with is {SHORTEST_KEY} printable characters or more, without spaces and commas; "
                    "make one with: openssl rand -hex 32"
                )
        if "@" in urlsplit(self.artifacts_url).netloc:
            raise ValueError("ADAPTIDE_ARTIFACTS_URL carries no credentials: they come from the environment (AWS_*)")
        try:
            _ = self.home_dir, self.artifacts_dir
        except RuntimeError:
            raise ValueError("ADAPTIDE_HOME or ADAPTIDE_ARTIFACTS_URL names with ~ a user that there is not") from None
        return self

    @property
    def serves_docs(self) -> bool:
        """Whether /docs and /openapi.json are served."""
        return self.environment is Environment.DEVELOPMENT if self.docs is None else self.docs

    @property
    def home_dir(self) -> Path:
        return self.home.expanduser().resolve()

    @property
    def store_url(self) -> str:
        """The database URL in force; SQLite under HOME unless set."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.home_dir / 'adaptide.db'}"

    @property
    def keys_accepted(self) -> list[str]:
        """Of `signing_keys_accepted`, one by one."""
        return [key.strip() for key in self.signing_keys_accepted.get_secret_value().split(",") if key.strip()]

    @property
    def artifacts_remote(self) -> str | None:
        """The URL of the artifacts' object store, None when they lie in a folder."""
        scheme, found, _ = self.artifacts_url.partition("://")
        return self.artifacts_url if found and scheme != "file" else None

    @property
    def artifacts_dir(self) -> Path:
        """The folder of artifacts; with an object store, that of its cache."""
        if self.artifacts_remote is not None:
            return self.home_dir / "cache" / "artifacts"
        folder = self.artifacts_url
        if folder.startswith("file://"):
            folder = unquote(urlsplit(folder).path)
        return Path(folder).expanduser().resolve() if folder else self.home_dir / "artifacts"


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment, `overrides` first.

    Raises ConfigurationError naming each wrong or unknown variable and what is allowed.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(PREFIX) and name not in known and not name.startswith(PREFIX + "TEST_")
    )
    if unknown:
        raise ConfigurationError(
            f"unknown setting{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}: "
            "unset or correct; docs/settings.md lists every variable"
        )
    try:
        settings = Settings(**overrides)  # type: ignore[arg-type]  # values are validated by pydantic
    except SettingsError as error:  # says which field
        raise ConfigurationError(f'{error}; JSON is needed, such as ["impression"]') from error
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            place = "_".join(str(part) for part in problem["loc"]).upper()
            lines.append(f"{PREFIX + place if place else 'settings'}: {problem['msg'].removeprefix('Value error, ')}")
        raise ConfigurationError("; ".join(lines)) from error
    for variable in (crash_points.VARIABLE, crash_points.PAUSE_VARIABLE):
        point = os.environ.get(variable)
        if point is not None and point not in set(crash_points.CrashPoint):
            raise ConfigurationError(f"{variable}={point} is no crash point: {', '.join(crash_points.CrashPoint)}")
    return settings


def settings_table() -> str:
    """Every setting as a Markdown table: variable, default, meaning."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{PREFIX}{name.upper()}` | {_shown_default(field.default)} | {meaning} |")
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """docs/settings.md, whole."""
    return (
        "# Settings\n\nEvery setting is an environment variable; an unknown `ADAPTIDE_` variable is an error. "
        "Durations are seconds or ISO 8601 (`PT1H`).\nWritten by `python -m service.settings > docs/settings.md`.\n\n"
        + settings_table()
    )


def _shown_default(value: object) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, timedelta):
        value = f"{value.total_seconds():g} s"
    if value is None:
        return "(empty)"
    if isinstance(value, frozenset):
        value = json.dumps(sorted(value))  # how the environment gives it
    return f"`{value}`" if str(value) else "(empty)"


if __name__ == "__main__":
    sys.stdout.write(settings_page())
