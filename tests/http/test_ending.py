"""The end of a served process in which a thread still computes."""

import subprocess
import sys

# A thread that is never out of torch for long, as one that loads a model when the service is told to stop.
COMPUTING = """
import threading, torch
from service.http.server import end_with_threads

square, began = torch.ones(300, 300), threading.Event()

def compute():
    while True:
        torch.mm(square, square)
        began.set()

threading.Thread(target=compute, name="loader", daemon=True).start()
began.wait()
end_with_threads()
print("last words", end="")
"""


def test_a_thread_within_torch_does_not_abort_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", COMPUTING], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("last words")
    assert "threads_left_behind" in ended.stdout
    assert "loader" in ended.stdout
