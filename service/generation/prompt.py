"""History -> token ids. The `compact` prompt is the history's semantic-ID tokens behind one start token."""

import numpy as np
from numpy.typing import NDArray

from service.catalog.trie import CODES, LEVELS

PAD, BOS, EOS = 0, 1, 2
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
FIRST_CODE_TOKEN = len(SPECIAL_TOKENS)  # tokens of level l are FIRST_CODE_TOKEN + 256 l .. + 255
VOCABULARY = FIRST_CODE_TOKEN + LEVELS * CODES


def code_tokens() -> list[str]:
    """The 1,024 semantic-ID tokens in id order: <a_0> .. <d_255>."""
    return [f"<{'abcd'[level]}_{code}>" for level in range(LEVELS) for code in range(CODES)]


def level_offsets(first_code_token: int = FIRST_CODE_TOKEN) -> NDArray[np.int64]:
    """int64 [4], the token id of code 0 of each level."""
    return first_code_token + CODES * np.arange(LEVELS, dtype=np.int64)


def compact_prompt(history: NDArray[np.int16], first_code_token: int = FIRST_CODE_TOKEN) -> NDArray[np.int64]:
    """int64 [1 + 4 n] from int16 [n, 4], oldest item first. An empty history is the start token alone."""
    tokens = history.astype(np.int64) + level_offsets(first_code_token)
    return np.concatenate(([BOS], tokens.reshape(-1)))
