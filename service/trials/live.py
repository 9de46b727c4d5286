"""What a request needs to know of the trial whose candidate is in memory here. Pure."""

from dataclasses import dataclass
from datetime import datetime

from service.trials.shares import place
from service.trials.states import Arm, Kind


@dataclass(frozen=True, slots=True)
class LiveTrial:
    """ends_at: nobody gets the candidate from then on. trained_through: the newest event that it has seen."""

    revision: int
    kind: Kind
    base_id: str
    adapter_version: str
    share: float
    salt: str
    ends_at: datetime | None = None
    trained_through: datetime | None = None

    def arm(self, user_id: str | None) -> Arm | None:
        """Who answers this user in a canary. None: no canary, or nobody is named; such requests are in neither arm."""
        if self.kind is not Kind.CANARY or user_id is None:
            return None
        return Arm.CANARY if place(self.salt, user_id) < self.share else Arm.CONTROL

    def shadows(self, user_id: str | None, recommendation_id: str) -> bool:
        """Whether the candidate ranks this one in the shadow; without a user its id decides."""
        return self.kind is Kind.SHADOW and place(self.salt, user_id or recommendation_id) < self.share
