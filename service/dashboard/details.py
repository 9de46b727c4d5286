"""What the detail pages work with beside the services that everybody has."""

from dataclasses import dataclass

from service.dashboard.comparison import Comparisons
from service.dashboard.side_work import SideWork
from service.dashboard.user_pages import Looks


@dataclass(frozen=True, slots=True)
class Details:
    """One for each application, shared by its threads. work: to be started and stopped with it."""

    work: SideWork
    comparisons: Comparisons
    looks: Looks
