"""Fitting the frozen text encoders of service.catalog.semantic_ids."""

from collections.abc import Sequence

import numpy as np

from service.catalog.semantic_ids import TfidfEncoder, make_vectorizer
from service.errors import CatalogueError


def fit_tfidf(texts: Sequence[str], *, dimensions: int, max_terms: int, seed: int) -> TfidfEncoder:
    """TF-IDF over `texts` and its `dimensions` leading singular directions (fewer when the texts span fewer).

    Raises CatalogueError when no text holds a word.
    """
    from sklearn.decomposition import TruncatedSVD  # a second to import: not for every worker

    vectorizer = make_vectorizer(max_features=max_terms)
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise CatalogueError(
            "no item has a title or description with a word in it; items need text to get codes"
        ) from error
    if weights.shape[1] == 1:  # one word is its own direction, and scikit-learn wants two
        components = np.ones((1, 1))
    else:
        with np.errstate(invalid="ignore"):  # texts that are all alike have no variance for scikit-learn to explain
            svd = TruncatedSVD(min(dimensions, *weights.shape), random_state=seed, n_iter=7).fit(weights)
        components = svd.components_
    return TfidfEncoder(
        terms=tuple(str(term) for term in vectorizer.get_feature_names_out()),
        idf=vectorizer.idf_.astype(np.float32),
        components=np.asarray(components, dtype=np.float32),
    )
