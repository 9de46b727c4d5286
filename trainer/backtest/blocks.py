"""What the blocks of a backtest ask of every method: examples, popularity and cases, made once."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.settings import Settings
from trainer.backtest.data import BacktestData, popularity_before, streams
from trainer.examples import Case, Examples, build_examples, prequential_cases, sample_cases

ACROSS_USERS = 200
"""Users of each block on which the adapters of all blocks are compared."""


@dataclass(slots=True)
class Blocks:
    """Examples, popularity and test cases of the blocks (0: D_1), made once per process.

    The users that are scored do not depend on the seed, so that seeds and methods are compared on the same ones.
    """

    data: BacktestData
    settings: Settings
    _examples: dict[int, Examples] = field(default_factory=dict)
    _popularity: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    _prequential: dict[int, list[Case]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.data.blocks)

    def examples(self, t: int) -> Examples:
        if t not in self._examples:
            self._examples[t] = build_examples(
                streams(self.data, t),
                history_items=self.settings.history_items,
                min_events=self.settings.min_events_per_user,
            )
        return self._examples[t]

    def popularity(self, t: int) -> NDArray[np.float64]:
        """As of the end of the block before."""
        if t not in self._popularity:
            self._popularity[t] = popularity_before(self.data, t, self.settings.popularity_half_life)
        return self._popularity[t]

    def test(self, t: int) -> list[Case]:
        return sample_cases(self.examples(t).test, self.settings.evaluation_users, seed=0)

    def prequential(self, t: int) -> list[Case]:
        """Next items of the block as they came: what the updater asks of the adapter in service when a window closes.

        The updater asks who has ADAPTIDE_MIN_EVENTS_PER_USER events in it; here everybody is asked.
        """
        if t not in self._prequential:
            self._prequential[t] = prequential_cases(
                streams(self.data, t),
                history_items=self.settings.history_items,
                per_user=self.settings.evaluation_items_per_user,
                users=self.settings.evaluation_users,
                seed=0,
            )
        return self._prequential[t]

    def across(self, t: int) -> list[Case]:
        """Those of the test cases on which every stage is asked."""
        return sample_cases(self.test(t), ACROSS_USERS, seed=0)
