"""What is there at the start costs later collections nothing."""

import subprocess
import sys

PROGRAM = """
import gc
from service.kit.long_lived import YOUNG, leave_out_of_collections
kept = [[number] for number in range(100_000)]
leave_out_of_collections()
frozen = gc.get_freeze_count()
assert frozen > 100_000, frozen
later = [[] for _ in range(10)]
leave_out_of_collections()
assert gc.get_freeze_count() <= frozen, "asked again, it freezes nothing more"
assert any(found is later for found in gc.get_objects())
assert gc.get_threshold()[0] == YOUNG
"""


def test_what_is_there_is_left_out_once() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)
