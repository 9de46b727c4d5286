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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import structlog

from service.catalog.trie import Trie
from service.errors import Unavailable
from service.generation.engine import Generated, GenerationRequest, ServedModel

SPARES = 16  # searches for nobody that may wait
WAIT_S = 0.002  # for requests on their way; a tenth of a small model's search for one
EVEN_FROM = 8  # a batch of fewer is not cut in two: see Batcher._most
PACES = 32  # batches whose pace is known: a few seconds of a crowd

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
    candidate: bool = False


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
        on_ask: Callable[["Future[Answer]"], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        lease_candidate: Callable[[], AbstractContextManager[ServedModel | None]] = nullcontext,
        on_candidate_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """lease_model: the model in service, held for the length of one batch. on_batch: told each batch's size.

        least_beams: requests for fewer items are searched with this beam width. on_ask: told of each request's future.
        lease_candidate: of a trial. on_candidate_failure: told what it raised where the model in service had an answer.
        """
        self._lease_model = lease_model
        self._lease_candidate, self._on_candidate_failure = lease_candidate, on_candidate_failure
        self._max_requests, self._max_queued = max_requests, max_queued
        self._on_batch = on_batch
        self._least_beams = least_beams
        self._on_ask = on_ask
        self._monotonic = monotonic
        self._jobs: deque[_Job] = deque()
        self._spare: deque[_Job] = deque()
        self._coming = 0
        self._latest = 0  # requests in the batch before
        self._searching, self._began = 0, 0.0  # requests in the batch that is computed, and since when
        self._paces: deque[float] = deque(maxlen=PACES)  # seconds a request, of the latest batches
        self._pace: float | None = None  # the best of them
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
                if not self._coming and (self._jobs or self._spare):
                    self._changed.notify()

    def ask(
        self,
        request: GenerationRequest,
        trie: Trie,
        base_id: str,
        due: float = math.inf,
        *,
        candidate: bool = False,
    ) -> "Future[Answer]":
        """The answer to come; cancel the future to drop the request. Raises Unavailable when the queue is full, or so
        long that the answer would come too late: the caller has something else to give, and better now than then.

        due: on the monotonic clock; a request that is not begun by then is dropped. The future fails with TimeoutError
        then, and with Unavailable when no model of `base_id` is in service. candidate: ask the candidate of a trial;
        when it is not there, or fails, the model in service answers.
        """
        future: Future[Answer] = Future()
        with self._changed:
            if self._stopping:
                raise Unavailable("the service is stopping", retry_after=1)
            if len(self._jobs) >= self._max_queued:
                raise Unavailable("the generation queue is full", retry_after=1)
            if self._monotonic() + self._wait_s() > due:
                raise Unavailable("the generation queue is longer than the request can wait", retry_after=1)
            self._jobs.append(_Job(request, trie, base_id, due, future, candidate))
            if len(self._jobs) == 1 or len(self._jobs) == self._max_requests:
                self._changed.notify()
        if self._on_ask is not None:
            self._on_ask(future)
        return future

    def spare(self, request: GenerationRequest, trie: Trie, base_id: str) -> "Future[Answer]":
        """What the candidate answers, once nobody waits for anything: alone, so that whoever comes meanwhile waits for
        one search at most. Raises Unavailable when too many of these wait, which is so under load.

        The future fails with Unavailable when there is no candidate of `base_id`, and with what it raises.
        """
        future: Future[Answer] = Future()
        with self._changed:
            if self._stopping or len(self._spare) >= SPARES:
                raise Unavailable("the model is busy", retry_after=1)
            self._spare.append(_Job(request, trie, base_id, math.inf, future, True))
            self._changed.notify()
        return future

    def _wait_s(self) -> float:
        """At least so long until a request that comes now has its answer, by the best pace of late.

        0 for one that meets nobody: it is always tried, or a pace that was once too slow would never be measured again.
        """
        if self._pace is None or not (self._jobs or self._searching):
            return 0.0
        left = self._searching * self._pace - (self._monotonic() - self._began) if self._searching else 0.0
        return max(0.0, left) + (len(self._jobs) + 1) * self._pace

    def _run(self) -> None:
        while jobs := self._next():
            if not self._searching:
                self._answer_spare(jobs[0])
            elif not (jobs[0].candidate and self._answer_by_candidate(jobs)):
                self._answer(jobs)
            with self._changed:
                self._searching = 0

    def _next(self) -> list[_Job]:
        """The next batch, counted as what is searched; one spare job, not counted; empty at the end."""
        while True:
            with self._changed:
                while not self._jobs and not self._stopping:
                    if self._spare and not self._coming:
                        return [self._spare.popleft()]
                    self._changed.wait()
                if not self._jobs:
                    for job in self._spare:
                        job.future.cancel()
                    return []
                self._wait_for_those_coming()
                chosen, late = self._take()
                self._latest = self._searching = len(chosen)
                self._began = self._monotonic()
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

        One model, one beam width, one trie: what is unlike waits for the next batch, which begins with the oldest
        again, so that wide searches neither hold up narrow ones of their batch nor are passed over.
        """
        most, now = self._most(), self._monotonic()
        chosen: list[_Job] = []
        late: list[_Job] = []
        kept: deque[_Job] = deque()
        for job in self._jobs:
            alike = not chosen or (
                job.trie is chosen[0].trie
                and self._width(job) == self._width(chosen[0])
                and job.candidate == chosen[0].candidate
            )
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
                    began = self._monotonic()
                    answers = model.generate([j.request for j in fitting], fitting[0].trie)
                    self._paces.append((self._monotonic() - began) / len(fitting))
                    self._pace = min(self._paces)
                    for job, generated in zip(fitting, answers, strict=True):
                        job.future.set_result(Answer(generated, model.base_id, model.adapter_version))
        except Exception as error:  # the thread must outlive any one batch; the callers get the error
            for job in jobs:  # before the log line, which takes its time: they have a deadline
                if not job.future.done():
                    job.future.set_exception(error)
            log.exception("generation_failed", requests=len(jobs))

    def _answer_by_candidate(self, jobs: list[_Job]) -> bool:
        """Whether the jobs are done with; if not, the model in service has them still to answer."""
        try:
            with self._lease_candidate() as model:
                if model is None or any(job.base_id != model.base_id for job in jobs):
                    return False
                self._on_batch(len(jobs))
                answers = model.generate([job.request for job in jobs], jobs[0].trie)
                for job, generated in zip(jobs, answers, strict=True):
                    job.future.set_result(Answer(generated, model.base_id, model.adapter_version))
            return True
        except Exception as error:  # no request fails because of a trial
            log.exception("candidate_failed", requests=len(jobs))
            self._answer(jobs)
            # Where the model in service fails as well, the request is to blame, or the machine.
            if any(not job.future.cancelled() and job.future.exception() is None for job in jobs):
                self._on_candidate_failure(error)
            return True

    def _answer_spare(self, job: _Job) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        try:
            with self._lease_candidate() as model:
                if model is None or job.base_id != model.base_id:
                    raise Unavailable("no candidate of this base is on trial", retry_after=1)
                [generated] = model.generate([job.request], job.trie)
                job.future.set_result(Answer(generated, model.base_id, model.adapter_version))
        except Unavailable as error:
            job.future.set_exception(error)
        except Exception as error:  # the thread must outlive any one search
            job.future.set_exception(error)
            log.exception("candidate_failed", requests=1)
            self._on_candidate_failure(error)
