"""Who does not act like a person. It is reported with a window and decides nothing (docs/decisions/0025)."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np

LEAST = 50
"""With fewer interactions there is no telling."""
QUICKEST_S = 1.0
"""On average from the first to the last: nobody looks at an item a second for so long."""
REGULAR = 0.05
"""Standard deviation of the pauses, as a share of their mean: people's is above 1, a timer's about 0."""


def is_suspect(times: Sequence[datetime]) -> bool:
    """times: occurred_at of one user's interactions in a window, rising. Quicker than a person, or regular as a timer.

    It is told by what the client says, so a bot that takes its time, and waits now and then, is not seen.
    """
    if len(times) < LEAST:
        return False
    pauses = np.diff([moment.timestamp() for moment in times])
    mean = float(pauses.mean())
    return mean < QUICKEST_S or float(pauses.std()) < REGULAR * mean
