"""Residual k-means: each level's codebook is the k-means of what the levels before left over."""

import warnings

import numpy as np

from service.catalog.semantic_ids import Float32
from service.catalog.trie import CODES, LEVELS


def fit_rqkmeans(embeddings: Float32, *, seed: int) -> Float32:
    """Codebooks float32 [4, 256, d]; unused codes (fewer items than codes) lie infinitely far in effect: at 1e6."""
    from sklearn.cluster import KMeans  # a second to import: not for every worker
    from sklearn.exceptions import ConvergenceWarning

    residual = embeddings.copy()
    rounding = 1e-5 * np.abs(embeddings).max()
    books = np.full((LEVELS, CODES, embeddings.shape[1]), 1e6, dtype=np.float32)
    for level in range(LEVELS):
        distinct = len(np.unique(residual, axis=0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters than codes: texts that are much alike
            model = KMeans(min(CODES, distinct), n_init=1, random_state=seed + level).fit(residual)
        books[level, : model.n_clusters] = model.cluster_centers_
        residual = residual - books[level][model.labels_]
        residual[np.abs(residual) < rounding] = 0  # rounding errors are no clusters: nothing left is nothing left
    return books
