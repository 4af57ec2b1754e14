"""The client for code without an event loop: the same methods, each waiting for its answer."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine, Generator, Iterable, Mapping
from typing import IO, Any, Self, TypeVar

import uvloop

from actors.job import Job
from actors.registry import App
from cluster.config import Settings
from cluster.lifecycle import RunState
from penstock.admission_views import AdmissionAnswer, AdmissionView
from penstock.approval_facts import ApprovalView
from penstock.approval_views import ApprovalDetails
from penstock.checking import JobLike
from penstock.client import Client
from penstock.dependency_views import DependencyAnswer, DependencyView
from penstock.lineage_views import ForkReport, LineageView, PromotionReport
from penstock.policy_views import PolicyAnswer, PolicyExplanation, PolicyView
from penstock.queue_views import PauseView, QueueView
from penstock.submit_views import SubmitReport
from penstock.tracing import RunTrace
from penstock.trail_views import Trail, TrailVerification
from penstock.unknown import NOT_GIVEN
from penstock.unknown_views import Resolved, UnknownEffect
from penstock.views import BatchStatus, DeploymentStatus, HostView, Result, RunSummary, RunView, Why

T = TypeVar("T")


class SyncClient:
    """:class:`penstock.client.Client` for synchronous code; see there. It may be used from several threads.

    A private event loop runs in a thread of its own: iterators of jobs and progress callbacks are called there.
    """

    def __init__(
        self, redis_url: str | None = None, *, settings: Settings | None = None, app: App | None = None
    ) -> None:
        self._client = Client(redis_url, settings=settings, app=app)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def settings(self) -> Settings:
        """The deployment's settings."""
        return self._client.settings

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Connects; ``with`` does it by itself."""
        if self._loop is not None:
            return
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="penstock-client", daemon=True)
        self._thread.start()
        try:
            self._call(self._client.open())
        except BaseException:
            self._end_loop()
            raise

    def close(self) -> None:
        """Closes the connections. Whatever was submitted goes on."""
        if self._loop is not None:
            try:
                self._call(self._client.close())
            finally:
                self._end_loop()

    def submit(
        self, jobs: Iterable[JobLike] | AsyncIterable[JobLike], *, batch: str | None = None, **options: Any
    ) -> SubmitReport:
        """See :meth:`Client.submit`."""
        return self._call(self._client.submit(jobs, batch=batch, **options))

    def submit_file(
        self, path: str | os.PathLike[str] | IO[bytes], *, batch: str | None = None, **options: Any
    ) -> SubmitReport:
        """See :meth:`Client.submit_file`."""
        return self._call(self._client.submit_file(path, batch=batch, **options))

    def run(
        self,
        agent: str,
        input: Any,
        *,
        timeout_s: float | None = None,
        **job_fields: Any,
    ) -> Result:
        """See :meth:`Client.run`."""
        return self._call(self._client.run(agent, input, timeout_s=timeout_s, **job_fields))

    def status(self, batch: str) -> BatchStatus:
        """See :meth:`Client.status`."""
        return self._call(self._client.status(batch))

    def deployment(self, *, batches: int = 10) -> DeploymentStatus:
        """See :meth:`Client.deployment`."""
        return self._call(self._client.deployment(batches=batches))

    def watch(self, batch: str, *, retry_shed: bool = False) -> Generator[BatchStatus]:
        """See :meth:`Client.watch`."""
        return self._each(self._client.watch(batch, retry_shed=retry_shed))

    def results(self, batch: str) -> Generator[Result]:
        """See :meth:`Client.results`."""
        for page in self._each(self._client.result_pages(batch)):
            yield from page

    def runs(
        self, *, batch: str | None = None, state: RunState | str | None = None, limit: int = 50
    ) -> list[RunSummary]:
        """See :meth:`Client.runs`."""
        return self._call(self._client.runs(batch=batch, state=state, limit=limit))

    def show(self, run_id: str) -> RunView:
        """See :meth:`Client.show`."""
        return self._call(self._client.show(run_id))

    def why(self, run_id: str) -> Why:
        """See :meth:`Client.why`."""
        return self._call(self._client.why(run_id))

    def trace(self, run_id: str) -> RunTrace:
        """See :meth:`Client.trace`."""
        return self._call(self._client.trace(run_id))

    def trail(self, run_id: str, *, deep: bool = False, verify: bool = False, kept: str = "") -> Trail:
        """See :meth:`Client.trail`."""
        return self._call(self._client.trail(run_id, deep=deep, verify=verify, kept=kept))

    def verify_trail(self, run_id: str, *, deep: bool = False, kept: str = "") -> TrailVerification:
        """See :meth:`Client.verify_trail`."""
        return self._call(self._client.verify_trail(run_id, deep=deep, kept=kept))

    def hosts(self) -> list[HostView]:
        """See :meth:`Client.hosts`."""
        return self._call(self._client.hosts())

    def cancel(self, run_or_batch: str) -> int:
        """See :meth:`Client.cancel`."""
        return self._call(self._client.cancel(run_or_batch))

    def drain(self, host: str, *, undo: bool = False) -> None:
        """See :meth:`Client.drain`."""
        self._call(self._client.drain(host, undo=undo))

    def dependencies(self) -> list[DependencyView]:
        """See :meth:`Client.dependencies`."""
        return self._call(self._client.dependencies())

    def dependency(self, name: str) -> DependencyView:
        """See :meth:`Client.dependency`."""
        return self._call(self._client.dependency(name))

    def set_dependency(self, name: str, changes: Mapping[str, Any]) -> DependencyAnswer:
        """See :meth:`Client.set_dependency`."""
        return self._call(self._client.set_dependency(name, changes))

    def reset_dependency(self, name: str) -> DependencyAnswer:
        """See :meth:`Client.reset_dependency`."""
        return self._call(self._client.reset_dependency(name))

    def command_dependency(self, name: str, do: str, *, by: str | None = None, reason: str = "") -> DependencyAnswer:
        """See :meth:`Client.command_dependency`."""
        return self._call(self._client.command_dependency(name, do, by=by, reason=reason))

    def fork(self, run_id: str, at: str, **options: Any) -> ForkReport:
        """See :meth:`Client.fork`."""
        return self._call(self._client.fork(run_id, at, **options))

    def lineage(self, run_id: str) -> LineageView:
        """See :meth:`Client.lineage`."""
        return self._call(self._client.lineage(run_id))

    def promote(self, run_id: str, *, why: str, by: str | None = None) -> PromotionReport:
        """See :meth:`Client.promote`."""
        return self._call(self._client.promote(run_id, why=why, by=by))

    def unknown(
        self,
        *,
        tenant: str | None = None,
        tool: str | None = None,
        batch: str | None = None,
        limit: int | None = None,
    ) -> list[UnknownEffect]:
        """See :meth:`Client.unknown`."""
        return self._call(self._client.unknown(tenant=tenant, tool=tool, batch=batch, limit=limit))

    def unknown_of(self, run_id: str) -> list[UnknownEffect]:
        """See :meth:`Client.unknown_of`."""
        return self._call(self._client.unknown_of(run_id))

    def resolve(
        self,
        run_id: str,
        step: str,
        *,
        applied: bool,
        evidence: Any = None,
        result: Any = NOT_GIVEN,
        by: str | None = None,
        why: str = "",
        version: int | None = None,
    ) -> Resolved:
        """See :meth:`Client.resolve`."""
        said = self._client.resolve(
            run_id, step, applied=applied, evidence=evidence, result=result, by=by, why=why, version=version
        )
        return self._call(said)

    def ask_again(
        self, run_id: str, step: str, *, by: str | None = None, why: str = "", version: int | None = None
    ) -> Resolved:
        """See :meth:`Client.ask_again`."""
        return self._call(self._client.ask_again(run_id, step, by=by, why=why, version=version))

    def policy(self, version: str | None = None) -> PolicyView:
        """See :meth:`Client.policy`."""
        return self._call(self._client.policy(version))

    def policy_history(self) -> list[PolicyView]:
        """See :meth:`Client.policy_history`."""
        return self._call(self._client.policy_history())

    def set_policy(
        self, text: str, *, place: str = "policy", by: str | None = None, why: str = "", checked: bool = True
    ) -> PolicyAnswer:
        """See :meth:`Client.set_policy`."""
        return self._call(self._client.set_policy(text, place=place, by=by, why=why, checked=checked))

    def explain_policy(
        self,
        job: str | Job,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        policy: str | None = None,
        place: str = "policy",
    ) -> PolicyExplanation:
        """See :meth:`Client.explain_policy`."""
        return self._call(self._client.explain_policy(job, tool, arguments, policy=policy, place=place))

    def admission(self, version: str | None = None) -> AdmissionView:
        """See :meth:`Client.admission`."""
        return self._call(self._client.admission(version))

    def admission_history(self) -> list[AdmissionView]:
        """See :meth:`Client.admission_history`."""
        return self._call(self._client.admission_history())

    def set_admission(
        self, text: str, *, place: str = "admission", by: str | None = None, why: str = ""
    ) -> AdmissionAnswer:
        """See :meth:`Client.set_admission`."""
        return self._call(self._client.set_admission(text, place=place, by=by, why=why))

    def queue(self, tenant: str | None = None) -> QueueView:
        """See :meth:`Client.queue`."""
        return self._call(self._client.queue(tenant))

    def watch_queue(self, tenant: str | None = None, *, period_s: float = 1.0) -> Generator[QueueView]:
        """See :meth:`Client.watch_queue`."""
        return self._each(self._client.watch_queue(tenant, period_s=period_s))

    def pause(self, **what: str | None) -> PauseView:
        """See :meth:`Client.pause`."""
        return self._call(self._client.pause(**what))  # type: ignore[arg-type]

    def resume(self, **what: str | None) -> bool:
        """See :meth:`Client.resume`."""
        return self._call(self._client.resume(**what))

    def paused(self) -> list[PauseView]:
        """See :meth:`Client.paused`."""
        return self._call(self._client.paused())

    def approvals(self, *, all: bool = False, limit: int = 1000) -> list[ApprovalView]:
        """See :meth:`Client.approvals`."""
        return self._call(self._client.approvals(all=all, limit=limit))

    def approval(self, approval_id: str) -> ApprovalDetails:
        """See :meth:`Client.approval`."""
        return self._call(self._client.approval(approval_id))

    def approve(
        self, approval_id: str, *, by: str | None = None, reason: str = "", action: str | None = None
    ) -> ApprovalView:
        """See :meth:`Client.approve`."""
        return self._call(self._client.approve(approval_id, by=by, reason=reason, action=action))

    def deny(self, approval_id: str, *, reason: str, by: str | None = None, action: str | None = None) -> ApprovalView:
        """See :meth:`Client.deny`."""
        return self._call(self._client.deny(approval_id, reason=reason, by=by, action=action))

    def watch_approvals(self) -> Generator[ApprovalView]:
        """See :meth:`Client.watch_approvals`."""
        return self._each(self._client.watch_approvals())

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise RuntimeError("the client is not open: use `with SyncClient() as client`, or client.open()")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C reaches this thread only: the work must not go on unseen
            raise

    def _each(self, items: AsyncGenerator[T]) -> Generator[T]:
        async def following() -> tuple[T] | None:
            try:
                return (await anext(items),)
            except StopAsyncIteration:
                return None

        async def end() -> None:
            await items.aclose()

        try:
            while (item := self._call(following())) is not None:
                yield item[0]
        finally:
            if self._loop is not None:
                self._call(end())

    def _end_loop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()
