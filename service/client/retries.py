"""When a call is made again, and how long after."""

import random
from dataclasses import dataclass

RETRIED_STATUSES = frozenset({429, 502, 503, 504})
"""The server, or a balancer before it, could not answer now."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how patiently a call that may be repeated is.

    attempts: calls in all. first_s: the first pause, which doubles, up to longest_s; each is drawn at random between
    nothing and that, so that many clients do not come back together. A server's Retry-After is waited for besides,
    unless it asks for more than most_wait_s: the error is raised at once then.
    """

    attempts: int = 4
    first_s: float = 0.1
    longest_s: float = 5.0
    most_wait_s: float = 30.0

    def pause(self, attempt: int, retry_after: float | None, drawn: float | None = None) -> float | None:
        """Seconds before call `attempt` + 1 (the first is 1); None when there is to be none.

        drawn: within [0, 1), at random unless given.
        """
        if attempt >= self.attempts or (retry_after or 0.0) > self.most_wait_s:
            return None
        share = random.random() if drawn is None else drawn
        return (retry_after or 0.0) + share * min(self.longest_s, self.first_s * 2.0 ** (attempt - 1))


NEVER = Retries(attempts=1)
