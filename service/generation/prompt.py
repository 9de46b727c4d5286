"""History -> token ids. A base says which form its backbone was trained with; engines and training read the same one.

`compact` is the history's semantic-ID tokens behind one start token. `instruction` is the paper's text around them
(appendix D). Either is token ids only: a base carries them in `prompt.json`, so that serving needs no tokenizer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.catalog.trie import CODES, LEVELS
from service.errors import ArtifactError

Int64 = NDArray[np.int64]

PAD, BOS, EOS = 0, 1, 2
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
FIRST_CODE_TOKEN = len(SPECIAL_TOKENS)  # tokens of level l are FIRST_CODE_TOKEN + 256 l .. + 255
VOCABULARY = FIRST_CODE_TOKEN + LEVELS * CODES
PROMPT_FILE = "prompt.json"
MOST_FIXED_TOKENS = 4096
LEAST_SHARED_TOKENS = 8  # fewer are read again with each prompt as fast as they are copied


@dataclass(frozen=True, eq=False)
class Prompt:
    """`before`, the items' tokens oldest first with `between` between two of them, `after`: int64 token ids each.

    first_code_token: the id of code 0 of level 0; level l's codes follow at 256 l.
    """

    kind: str
    first_code_token: int
    before: Int64
    between: Int64
    after: Int64

    @property
    def is_plain(self) -> bool:
        """Nothing stands between items or behind them: the prompt and what it predicts are one sequence of items."""
        return not len(self.between) and not len(self.after)

    @property
    def offsets(self) -> Int64:
        """int64 [4], the token id of code 0 of each level."""
        return level_offsets(self.first_code_token)

    @property
    def fixed(self) -> tuple[Int64, Int64, Int64]:
        return self.before, self.between, self.after

    @property
    def shared(self) -> Int64:
        """The tokens that every prompt begins with and something always follows, where reading them once pays."""
        start = self.before if len(self.after) else self.before[:-1]
        return start if len(start) >= LEAST_SHARED_TOKENS else start[:0]

    def length(self, items: int) -> int:
        """Tokens of the prompt of so many items."""
        return self.trunk_length(items) + len(self.after)

    def encode(self, history: NDArray[np.int16]) -> Int64:
        """int64 [tokens] from int16 [n, 4], oldest item first; n may be 0."""
        trunk = self.trunk(history)
        return np.concatenate([trunk, self.after]) if len(self.after) else trunk

    def trunk(self, history: NDArray[np.int16]) -> Int64:
        """`encode` without `after`: what the prompts of one user's successive items share."""
        items = history.astype(np.int64).reshape(-1, LEVELS) + self.offsets
        if len(self.between) and len(items):
            between = np.broadcast_to(self.between, (len(items), len(self.between)))
            items = np.concatenate([items, between], axis=1)
            return np.concatenate([self.before, items.reshape(-1)[: -len(self.between)]])
        return np.concatenate([self.before, items.reshape(-1)])

    def trunk_length(self, items: int) -> int:
        """Tokens of the trunk of so many items."""
        return len(self.before) + LEVELS * items + len(self.between) * max(0, items - 1)

    def save(self, folder: Path) -> None:
        held: dict[str, Any] = {
            "kind": self.kind,
            "first_code_token": self.first_code_token,
            "before": self.before.tolist(),
            "between": self.between.tolist(),
            "after": self.after.tolist(),
        }
        (folder / PROMPT_FILE).write_bytes(orjson.dumps(held))


def compact(first_code_token: int = FIRST_CODE_TOKEN) -> Prompt:
    """The start token and the items, as the `tiny` backbone has them."""
    none = np.empty(0, dtype=np.int64)
    return Prompt("compact", first_code_token, np.array([BOS], dtype=np.int64), none, none)


COMPACT = compact()


def load_prompt(folder: Path) -> Prompt:
    """What `save` wrote; COMPACT where there is nothing. Raises ArtifactError for anything else."""
    path = folder / PROMPT_FILE
    if not path.exists():
        return COMPACT
    try:
        held = orjson.loads(path.read_bytes())
        parts = [np.array(held[name], dtype=np.int64).reshape(-1) for name in ("before", "between", "after")]
        kind, first = str(held["kind"]), int(held["first_code_token"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{path} does not hold a prompt; build the base again") from error
    if first < 0 or not len(parts[0]) or any((part < 0).any() for part in parts):
        raise ArtifactError(f"{path} holds no start or negative token ids; build the base again")
    if sum(map(len, parts)) > MOST_FIXED_TOKENS:
        raise ArtifactError(f"{path} holds more than {MOST_FIXED_TOKENS} fixed tokens")
    return Prompt(kind, first, *parts)


def code_tokens() -> list[str]:
    """The 1,024 semantic-ID tokens in id order: <a_0> .. <d_255>."""
    return [f"<{'abcd'[level]}_{code}>" for level in range(LEVELS) for code in range(CODES)]


def level_offsets(first_code_token: int = FIRST_CODE_TOKEN) -> Int64:
    """int64 [4], the token id of code 0 of each level."""
    return first_code_token + CODES * np.arange(LEVELS, dtype=np.int64)
