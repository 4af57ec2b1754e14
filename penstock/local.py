"""Deployments: a local one, all of it on this machine and ended as a whole; or ours on somebody's Ray cluster.

A local deployment is held together by one background process, which owns the embedded store, the Ray nodes and the
connection through which supervisor and hosts were deployed. It is ``python -m penstock.local``; :func:`up` starts it
detached and :func:`down` ends it. :class:`LocalDeployment` is the same in the calling process.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from pydantic import BaseModel, SecretStr

from actors.errors import PenstockError
from actors.registry import load_app
from cluster import session
from cluster.config import Settings, deployment_file
from cluster.embedded import EmbeddedValkey
from cluster.errors import StoreError
from cluster.processes import ProcessRecord
from penstock.admission_rules import put_given_rules
from penstock.connected import down_connected, import_path, up_connected
from penstock.deployment import (
    Deployment,
    DeploymentError,
    Footprint,
    forget,
    load_deployment,
    make_home,
    only_one,
    refuse_second,
    with_approval_keys,
)
from penstock.exporter import Exporter
from penstock.policies import enforce_given
from telemetry.log import configure_logging

__all__ = ["Deployment", "DeploymentError", "LocalDeployment", "down", "load_deployment", "up"]

log = logging.getLogger("penstock.local")

ROOT = Path(__file__).resolve().parents[1]
LOG_TAIL_LINES = 30
WATCH_PERIOD_S = 0.5

# Background processes that this process has started, to be reaped when it ends them too.
_children: dict[Path, subprocess.Popen[bytes]] = {}


class LocalDeployment:
    """Store, Ray nodes, supervisor and hosts on this machine, owned by this process; a context manager.

    ``app`` is the import path of the module with the agents, found from ``app_dir`` or as installed. With
    ``settings.redis_url`` set that store is used and outlives the deployment; otherwise an embedded one in ``home``,
    whose data stay there for the next deployment. Start it in the main thread (Ray binds its processes to that).
    """

    def __init__(
        self,
        home: Path,
        *,
        app: str,
        app_dir: Path | None = None,
        nodes: int = 2,
        cpus_per_node: float = 1,
        hosts_per_node: int | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.home = home
        self._app = app
        self._app_dir = app_dir.absolute() if app_dir else None
        self._hosts_per_node = hosts_per_node
        self._settings = settings or Settings(home=home)
        self._cpus_per_node = cpus_per_node
        self._nodes = nodes
        self._stack = contextlib.ExitStack()
        self._deployment: Deployment | None = None
        self.store: EmbeddedValkey | None = None
        self.ray: session.LocalRay | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def deployment(self) -> Deployment:
        """Its record. Raises DeploymentError before it is started."""
        if self._deployment is None:
            raise DeploymentError(f"the deployment at {self.home} is not started")
        return self._deployment

    @property
    def settings(self) -> Settings:
        """The settings that hosts and clients of it have, with the store's address."""
        return self._settings

    def start(self) -> Deployment:
        """Start everything and publish ``deployment.json``. On failure nothing is left running.

        Raises DeploymentError (home in use, app without agents) and what store and Ray raise.
        """
        if self._deployment is not None:
            return self._deployment
        try:
            return self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> Deployment:
        self.home = make_home(self.home)
        self._stack.enter_context(only_one(self.home))
        footprint = Footprint(self.home, ProcessRecord.of(os.getpid()))
        footprint.write()
        self._stack.callback(forget, self.home)
        with import_path(self._app_dir):
            load_app(self._app, self._settings)  # before anything is started: most failures of a first `up` are here
        embedded = self._settings.redis_url is None
        if embedded:
            self._start_store()
            assert self.store is not None
            footprint.add([self.store.pid])
            footprint.write()
        self._settings = with_approval_keys(self._settings, self.home)
        self.ray = session.LocalRay(
            nodes=self._nodes,
            cpus_per_node=self._cpus_per_node,
            python_path=[self._app_dir] if self._app_dir else [],
            extra_environment={"PENSTOCK_HOME": str(self.home)},
        )
        self._stack.callback(self.ray.stop)
        self.ray.start()
        footprint.processes.extend(self.ray.records())
        footprint.ray_directory = self.ray.directory
        footprint.write()
        self._stack.enter_context(session.connect(self.ray.address, namespace=self._settings.name))
        self._deploy()
        exporter = self._stack.enter_context(Exporter(self._settings, port=self._settings.metrics_port))
        assert self._settings.redis_url is not None
        self._deployment = Deployment(
            name=self._settings.name,
            app=self._app,
            redis_url=self._settings.redis_url,
            ray_address=self.ray.address,
            partitions=self._settings.partitions,
            home=self.home,
            app_dir=self._app_dir,
            embedded_store=embedded,
            nodes=self._nodes,
            cpus_per_node=self._cpus_per_node,
            daemon=footprint.daemon,
            metrics_url=exporter.url,
        )
        self._deployment.write()
        # First to go: no client may find what is about to end.
        self._stack.callback(deployment_file(self.home).unlink, missing_ok=True)
        return self._deployment

    def _start_store(self) -> None:
        self.store = EmbeddedValkey(self.home / "store")
        self._stack.callback(self.store.stop)
        self.store.start()
        self.store.supervise()
        self._settings = self._settings.model_copy(update={"redis_url": SecretStr(self.store.url)})

    def _deploy(self) -> None:
        from actors import supervisor  # imports Ray

        enforce_given(self._settings)
        put_given_rules(self._settings)
        self._stack.callback(self._shut_down)
        supervisor.deploy(self._settings, self._app, hosts_per_node=self._hosts_per_node)

    def _shut_down(self) -> None:
        """End the hosts in order. What they do not finish is taken up by the hosts of the next deployment."""
        from actors import supervisor

        assert self.ray is not None
        try:
            session.check_listening(self.ray.address)  # or Ray would wait for the dead
            supervisor.shutdown(self._settings)
        except session.RaySessionError as error:
            log.warning("hosts cannot be shut down in order, ending them with their nodes: %s", error)
        except Exception:
            log.warning("hosts did not shut down in order, ending them with their nodes", exc_info=True)

    def tend(self) -> None:
        """Replace Ray nodes that died; call it now and then, from the main thread.

        Raises DeploymentError when the head died: then the cluster is lost, and this deployment with it.
        """
        assert self.ray is not None
        for index in self.ray.reap():
            if index == 0:
                raise DeploymentError(f"the head of the local Ray cluster at {self.ray.address} died")
            log.warning("node %d of the local Ray cluster died: starting another one", index)
            self.ray.add_node()

    def stop(self) -> None:
        """Stop everything in order, even where a part fails; the embedded store's data stay."""
        self._deployment = None
        self._stack.close()
        self.store = self.ray = None


# -------------------------------------------------------------------------------------------- the background process


class _Ended(BaseException):
    """Somebody asked the background process to end."""


def main(arguments: list[str] | None = None) -> int:
    """The background process of a local deployment: start, tend until SIGTERM or SIGINT, stop everything."""
    parser = argparse.ArgumentParser(prog="python -m penstock.local", description=main.__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--app", required=True)
    parser.add_argument("--app-dir", type=Path)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus-per-node", type=float, default=1)
    parser.add_argument("--hosts-per-node", type=int)
    options = parser.parse_args(arguments)
    configure_logging()

    def end(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # asked once is enough: nothing may interrupt the stopping
        raise _Ended

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    local = LocalDeployment(
        options.home,
        app=options.app,
        app_dir=options.app_dir,
        nodes=options.nodes,
        cpus_per_node=options.cpus_per_node,
        hosts_per_node=options.hosts_per_node,
        settings=Settings(home=options.home),
    )
    try:
        deployment = local.start()
        log.info("deployment %s of %s is ready, Ray at %s", deployment.name, deployment.app, deployment.ray_address)
        while True:
            time.sleep(WATCH_PERIOD_S)
            local.tend()
    except _Ended:
        log.info("ending the deployment")
        return 0
    except (PenstockError, StoreError, session.RaySessionError) as error:
        log.error("%s", error)
        return 1
    except Exception:
        log.exception("the deployment failed")
        return 1
    finally:
        local.stop()


# ------------------------------------------------------------------------------------------------------ up and down


def up(
    home: Path | None = None,
    *,
    app: str,
    app_dir: Path | None = None,
    nodes: int = 2,
    cpus_per_node: float = 1,
    hosts_per_node: int | None = None,
    settings: Settings | None = None,
    address: str | None = None,
    redis_url: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    timeout_s: float = 90.0,
) -> Deployment:
    """Start a deployment and return when it is ready.

    Without ``address`` a local one, in the background. With ``address`` (ip:port of a Ray cluster's GCS) and a store
    that its nodes can reach: supervisor and hosts are deployed there, and our code and ``app_dir`` are sent along;
    ``runtime_env`` is added to what Ray is told.

    Raises DeploymentError: one is running at this home, it did not start (with the end of its log), or not in time.
    """
    settings = settings or Settings()
    if redis_url is not None:
        settings = settings.model_copy(update={"redis_url": SecretStr(redis_url)})
    home = make_home(home or settings.home)
    refuse_second(home)
    _reap(home)
    if address is not None:
        return up_connected(home, address, app, app_dir, settings, hosts_per_node, runtime_env)
    log_path = home / "daemon.log"
    if log_path.exists():
        log_path.replace(home / "daemon.log.1")
    command = [sys.executable, "-P", "-m", "penstock.local", "--home", str(home), "--app", app]
    command += ["--nodes", str(nodes), "--cpus-per-node", str(cpus_per_node)]
    command += ["--app-dir", str(app_dir.absolute())] if app_dir else []
    command += ["--hosts-per-node", str(hosts_per_node)] if hosts_per_node is not None else []
    log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(
            command,
            cwd=home,
            env=_daemon_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            start_new_session=True,
            umask=0o077,
        )
    finally:
        os.close(log_fd)
    _children[home] = process
    try:
        return _await_ready(home, process, log_path, timeout_s)
    except BaseException:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20.0)
        down(home)
        _reap(home)
        raise


def _daemon_environment(settings: Settings) -> dict[str, str]:
    """Ours, with the settings that the caller has in hand and the place from which we were imported."""
    environment = dict(os.environ)
    for name in settings.model_fields_set - {"home"}:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            environment[f"PENSTOCK_{name.upper()}"] = value.get_secret_value()
        elif isinstance(value, BaseModel):
            environment[f"PENSTOCK_{name.upper()}"] = json.dumps(value.model_dump(mode="json"))
        elif value is not None:
            environment[f"PENSTOCK_{name.upper()}"] = str(value)
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def _await_ready(home: Path, process: subprocess.Popen[bytes], log_path: Path, timeout_s: float) -> Deployment:
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        deployment = load_deployment(home)
        if deployment is not None and deployment.daemon is not None and deployment.daemon.pid == process.pid:
            return deployment
        time.sleep(0.05)
    code = process.poll()
    what = f"was not ready within {timeout_s:g} s" if code is None else f"did not start (exit code {code})"
    tail = "\n".join(log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:])
    raise DeploymentError(f"the deployment {what}; end of {log_path}:\n{tail}")


def down(home: Path, *, timeout_s: float = 30.0) -> bool:
    """End the deployment at ``home`` and everything that it started. Whether there was one.

    A background process that does not end in order within ``timeout_s`` is ended by force, and so is what it leaves
    behind; a process that only has a recorded pid by chance is not touched. The embedded store's data stay.
    """
    home = home.expanduser().absolute()
    footprint = Footprint.read(home)
    if footprint is not None:
        was_running = footprint.end(timeout_s=timeout_s)
        forget(home)
        _reap(home)
        return was_running
    recorded = load_deployment(home)
    if recorded is None:
        return False
    down_connected(recorded)
    return True


def _reap(home: Path) -> None:
    child = _children.pop(home, None)
    if child is not None:
        child.kill()  # it has ended, unless it never came as far as to record itself
        child.wait()


if __name__ == "__main__":
    sys.exit(main())
