"""Places within a kind, and membership of a rising array."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def places_in_kind(weights: NDArray[Any], kinds: NDArray[Any]) -> NDArray[np.int64]:
    """int64 [n]: how many entries of its kind weigh more than each, or as much and come before it."""
    order = np.lexsort((-weights, kinds))  # stable
    begins = np.flatnonzero(np.append(True, kinds[order][1:] != kinds[order][:-1])[: len(kinds)])
    found = np.empty(len(kinds), dtype=np.int64)
    found[order] = np.arange(len(kinds)) - np.repeat(begins, np.diff(np.append(begins, len(kinds))))
    return found


def among(values: NDArray[Any], rising: NDArray[Any]) -> NDArray[np.bool_]:
    """bool [n]: which of `values` are in `rising`, whose length costs next to nothing (np.isin reads all of it)."""
    if not len(rising):
        return np.zeros(len(values), dtype=np.bool_)
    at = np.minimum(np.searchsorted(rising, values), len(rising) - 1)
    return np.asarray(rising[at] == values)
