"""The pages that the navigation names, in its order."""

from typing import NamedTuple


class Link(NamedTuple):
    path: str
    label: str


NAV: tuple[Link, ...] = (
    Link("/dashboard", "Overview"),
    Link("/dashboard/windows", "Windows"),
    Link("/dashboard/adapters", "Adapters"),
    Link("/dashboard/quality", "Quality"),
    Link("/dashboard/users", "Users"),
    Link("/dashboard/items", "Items"),
    Link("/dashboard/catalogue", "Catalogue"),
)
