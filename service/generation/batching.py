"""Requests that arrive together are generated together; one thread computes, callers wait on futures.

While one batch computes the next one gathers, so a lone request never waits and a crowd is batched. A batch waits only
for requests that are known to be on their way, and not long.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import structlog

from service.catalog.trie import Trie
from service.errors import Unavailable
from service.generation.engine import Generated, GenerationRequest, ServedModel

WAIT_S = 0.002  # for requests on their way; a tenth of a small model's search for one
EVEN_FROM = 8  # a batch of fewer is not cut in two: see Batcher._most

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was generated and by which model."""

    generated: Generated
    base_id: str
    adapter_version: str | None


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    request: GenerationRequest
    trie: Trie
    base_id: str
    due: float
    future: "Future[Answer]"


class Batcher:
    """`ask` from any thread; start() and stop() once each."""

    def __init__(
        self,
        lease_model: Callable[[], AbstractContextManager[ServedModel | None]],
        max_requests: int,
        max_queued: int,
        on_batch: Callable[[int], None] = lambda size: None,
        *,
        least_beams: int = 1,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """lease_model: the model in service, held for the length of one batch. on_batch: told each batch's size.

        least_beams: requests for fewer items are searched with this beam width.
        """
        self._lease_model = lease_model
        self._max_requests, self._max_queued = max_requests, max_queued
        self._on_batch = on_batch
        self._least_beams = least_beams
        self._monotonic = monotonic
        self._jobs: deque[_Job] = deque()
        self._coming = 0
        self._latest = 0  # requests in the batch before
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._stopping = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Answer what is queued, then end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout=10)

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._jobs)

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Around what a request does before it asks; a batch that is about to begin waits for it, WAIT_S at most."""
        with self._changed:
            self._coming += 1
        try:
            yield
        finally:
            with self._changed:
                self._coming -= 1
                if not self._coming and self._jobs:
                    self._changed.notify()

    def ask(self, request: GenerationRequest, trie: Trie, base_id: str, due: float = math.inf) -> "Future[Answer]":
        """The answer to come; cancel the future to drop the request. Raises Unavailable when the queue is full.

        due: on the monotonic clock; a request that is not begun by then is dropped. The future fails with TimeoutError
        then, and with Unavailable when no model of `base_id` is in service.
        """
        future: Future[Answer] = Future()
        with self._changed:
            if self._stopping:
                raise Unavailable("the service is stopping", retry_after=1)
            if len(self._jobs) >= self._max_queued:
                raise Unavailable("the generation queue is full", retry_after=1)
            self._jobs.append(_Job(request, trie, base_id, due, future))
            if len(self._jobs) == 1 or len(self._jobs) == self._max_requests:
                self._changed.notify()
        return future

    def _run(self) -> None:
        while jobs := self._next():
            self._answer(jobs)

    def _next(self) -> list[_Job]:
        """The next batch; empty at the end."""
        while True:
            with self._changed:
                while not self._jobs and not self._stopping:
                    self._changed.wait()
                if not self._jobs:
                    return []
                self._wait_for_those_coming()
                chosen, late = self._take()
                self._latest = len(chosen)
            for job in late:
                job.future.set_exception(TimeoutError("the request was not begun before its deadline"))
            if chosen:
                return chosen

    def _wait_for_those_coming(self) -> None:
        end = time.monotonic() + WAIT_S
        while self._coming and len(self._jobs) < self._max_requests and not self._stopping:
            left = end - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _most(self) -> int:
        """How many to take now: half of those in the house.

        With all of them in one batch nothing would be left to compute while their replies are written and their clients
        ask again; in two halves one is computed while the other is on its way.
        """
        half = math.ceil((len(self._jobs) + self._latest) / 2)
        return min(self._max_requests, max(EVEN_FROM, half))

    def _take(self) -> tuple[list[_Job], list[_Job]]:
        """The oldest request and those that can share its search, in order of arrival; and those that are too late.

        One beam width, one trie: what is unlike waits for the next batch, which begins with the oldest again, so that
        wide searches neither hold up narrow ones of their batch nor are passed over.
        """
        most, now = self._most(), self._monotonic()
        chosen: list[_Job] = []
        late: list[_Job] = []
        kept: deque[_Job] = deque()
        for job in self._jobs:
            alike = not chosen or (job.trie is chosen[0].trie and self._width(job) == self._width(chosen[0]))
            if len(chosen) == most or not alike:
                kept.append(job)
            elif job.future.set_running_or_notify_cancel():
                (late if job.due <= now else chosen).append(job)
        self._jobs = kept
        return chosen, late

    def _width(self, job: _Job) -> int:
        return max(self._least_beams, job.request.limit)

    def _answer(self, jobs: list[_Job]) -> None:
        try:
            with self._lease_model() as model:
                fitting = [j for j in jobs if model is not None and j.base_id == model.base_id]
                for job in jobs:
                    if job not in fitting:
                        job.future.set_exception(Unavailable("no model of this base is in service", retry_after=1))
                if model is not None and fitting:
                    self._on_batch(len(fitting))
                    answers = model.generate([j.request for j in fitting], fitting[0].trie)
                    for job, generated in zip(fitting, answers, strict=True):
                        job.future.set_result(Answer(generated, model.base_id, model.adapter_version))
        except Exception as error:  # the thread must outlive any one batch; the callers get the error
            for job in jobs:  # before the log line, which takes its time: they have a deadline
                if not job.future.done():
                    job.future.set_exception(error)
            log.exception("generation_failed", requests=len(jobs))
