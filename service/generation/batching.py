"""Requests that arrive together are generated together; one thread computes, callers wait on futures.

No timer: while one batch computes the next one gathers, so a lone request never waits and a crowd is batched.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass

import structlog

from service.catalog.trie import Trie
from service.errors import Unavailable
from service.generation.engine import Generated, GenerationRequest, ServedModel

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
    future: "Future[Answer]"


class Batcher:
    """`ask` from any thread; start() and stop() once each."""

    def __init__(
        self,
        lease_model: Callable[[], AbstractContextManager[ServedModel | None]],
        max_requests: int,
        max_queued: int,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        """lease_model: the model in service, held for the length of one batch. on_batch: told each batch's size."""
        self._lease_model = lease_model
        self._max_requests = max_requests
        self._jobs: queue.Queue[_Job | None] = queue.Queue(max_queued)
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._on_batch = on_batch
        self._stopping = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Answer what is queued, then end."""
        self._stopping = True
        self._jobs.put(None)
        self._thread.join(timeout=10)

    def ask(self, request: GenerationRequest, trie: Trie, base_id: str) -> "Future[Answer]":
        """The answer to come; cancel the future to drop the request. Raises Unavailable when the queue is full.

        The future fails with Unavailable when no model of `base_id` is in service.
        """
        if self._stopping:
            raise Unavailable("the service is stopping", retry_after=1)
        future: Future[Answer] = Future()
        try:
            self._jobs.put_nowait(_Job(request, trie, base_id, future))
        except queue.Full:
            raise Unavailable("the generation queue is full", retry_after=1) from None
        return future

    def _run(self) -> None:
        ended = False
        while not ended:
            job = self._jobs.get()
            if job is None:
                return
            jobs = [job]
            while len(jobs) < self._max_requests:
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if job is None:
                    ended = True
                    break
                jobs.append(job)
            wanted = [j for j in jobs if j.future.set_running_or_notify_cancel()]
            for trie in {id(j.trie): j.trie for j in wanted}.values():
                self._answer([j for j in wanted if j.trie is trie], trie)

    def _answer(self, jobs: list[_Job], trie: Trie) -> None:
        try:
            with self._lease_model() as model:
                fitting = [j for j in jobs if model is not None and j.base_id == model.base_id]
                for job in jobs:
                    if job not in fitting:
                        job.future.set_exception(Unavailable("no model of this base is in service", retry_after=1))
                if model is not None and fitting:
                    self._on_batch(len(fitting))
                    answers = model.generate([j.request for j in fitting], trie)
                    for job, generated in zip(fitting, answers, strict=True):
                        job.future.set_result(Answer(generated, model.base_id, model.adapter_version))
        except Exception as error:  # the thread must outlive any one batch; the callers get the error
            for job in jobs:  # before the log line, which takes its time: they have a deadline
                if not job.future.done():
                    job.future.set_exception(error)
            log.exception("generation_failed", requests=len(jobs))
