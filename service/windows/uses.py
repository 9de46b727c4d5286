"""What unfinished windows still need of the artifacts."""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.adapters.collection import Use
from service.windows import states
from service.windows.states import WindowState
from service.windows.tables import windows


def of_windows(connection: Connection, attempts: int) -> list[Use]:
    """Base, incumbent and candidate of each window that waits for its outcome or may be tried again."""
    open_states = [WindowState.SEALED.value, WindowState.TRAINING.value, WindowState.FAILED.value]
    query = sa.select(windows).where(windows.c.state.in_(open_states)).order_by(windows.c.window_id)
    found = []
    for row in connection.execute(query).mappings():
        if states.settled(WindowState(row["state"]), row["attempts"], attempts):
            continue
        by = f"window {row['window_id']}"
        found += [Use(by, row["base_id"], row["incumbent_version"]), Use(by, None, row["candidate_version"])]
    return found
