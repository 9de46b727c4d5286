"""Lists spread over kinds of items: each better item of its kind makes an item count (1 - diversity) times as likely.

An item's kind is the first code of its semantic ID. To order by weight * (1 - diversity)^j, where j is how many items
of its kind weigh more, is what choosing one item after the other comes to, each time the one that weighs most after
what is already chosen of its kind: within a kind the order never changes, so j is known beforehand.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.catalog.trie import Int64
from service.kit.places import places_in_kind

Float64 = NDArray[np.float64]
UTMOST = 1e6
"""Nats, instead of infinitely many: more than any two scores are apart, and float64 still tells scores apart below."""


def penalty(diversity: float) -> float:
    """Nats that an item loses for each better one of its kind; diversity: 0 to 1."""
    return UTMOST if diversity >= 1 else min(UTMOST, -math.log1p(-diversity))


def spread_scores(scores: Float64, kinds: NDArray[Any], diversity: float) -> Int64:
    """int64 [n]: the order of items whose scores are log-probabilities; ties as given."""
    own = places_in_kind(scores, kinds)
    return np.lexsort((own, -(scores - penalty(diversity) * own)))


def spread_weights(weights: Float64, kinds: NDArray[Any], diversity: float) -> Int64:
    """int64 [n]: the order of items whose weights are no logarithms; of equals one whose kind came less often."""
    own = places_in_kind(weights, kinds)
    return np.lexsort((own, -(weights * (1 - diversity) ** own)))
