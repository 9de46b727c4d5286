"""What is said about an erasure."""

from pydantic import BaseModel


class Erasure(BaseModel):
    """How many rows of a user were erased."""

    events: int
    recommendations: int
