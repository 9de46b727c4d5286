"""What a serving process answered under load, another process computes again to the last bit, on as many threads."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.access.schemas import Scope
from service.access.service import AccessService
from service.kit.clock import utc_now
from service.kit.db import Database
from service.settings import Settings
from tests.built import BuiltWorld
from tests.serving import command, serving

ALL = """
import sys
from service.adapters.place import open_artifacts
from service.recommend.replay import replay
from service.settings import load_settings
from service.store import open_store
settings = load_settings()
database, artifacts = open_store(settings), open_artifacts(settings)
for line in sys.argv[1:]:
    found = replay(database, artifacts, settings, line)
    print(found.identical, found.row["computed"]["batch"][0], *found.notes, *filter(None, [found.impossible]))
"""


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the dialect plays no part
@pytest.mark.parametrize("threads", ["0", "2"])  # measured at the start, and given
def test_another_process_computes_the_same(
    settings: Settings, database: Database, built_world: BuiltWorld, threads: str
) -> None:
    built_world.copy_into(database, settings.artifacts_dir)
    key = AccessService(database, utc_now).create("tests", frozenset({Scope.READ}), actor="cli")
    headers = {"Authorization": f"Bearer {key.token}"}
    patience = {"REQUEST_DEADLINE": "60", "DATABASE_ANSWER_TIMEOUT": "30", "THREADS": threads}
    with serving(settings.store_url, settings.home, **patience) as (_, address):

        def ask(user: int) -> str:
            wanted = {"user_id": f"u{user:02d}", "limit": 3 + user % 8}
            reply = httpx.post(f"{address}/v1/recommendations", json=wanted, headers=headers, timeout=120).json()
            assert reply["strategy"] == "personalised", reply
            found: str = reply["recommendation_id"]
            return found

        with ThreadPoolExecutor(12) as pool:
            made = list(pool.map(ask, range(24)))

    _, environment = command(settings.store_url, settings.home)
    done = subprocess.run(
        [sys.executable, "-c", ALL, *made], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["True"] * len(made), done.stdout
    assert max(int(line[1]) for line in lines) > 1, "none shared a batch"
    assert all(len(line) == 2 for line in lines), "nothing is to be noted on the same machine"

    one = subprocess.run(
        [sys.executable, "-m", "trainer.cli", "replay", made[0], "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (one.returncode, json.loads(one.stdout)["identical"]) == (0, True), one.stderr
