"""Models are loaded one at a time in a process, for loading one changes torch and transformers under every thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_turn = threading.Lock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Every load of a model in this process belongs in here; it waits for the one that is under way. Not reentrant.

    While transformers 5 makes a model, no model ties its weights, torch.linspace and torch.nn.init are others, and
    torch's default number type is the model's (vLLM sets that too). Each load puts back what it found; two at once find
    what the other has set, leave it set, and from then on no load is right until the process ends.
    """
    with _turn:
        yield
