"""What is known of a deployment: the record that clients read, and what is needed to end everything that belongs to it.

Two files in the deployment's home, both 0600. ``deployment.json`` is there while the deployment is ready; clients find
the store by it. ``daemon.json`` is there from the first moment of a local deployment's background process and names the
processes that it has started, so that they can be ended even when that process was killed.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr

from actors.errors import PenstockError
from cluster.approval_keys import make_approval_keys
from cluster.config import Settings, deployment_file, read_deployment
from cluster.janitor import processes_of, sweep
from cluster.processes import ProcessRecord, end_all, write_private

VERSION = 1

log = logging.getLogger("penstock.local")


class DeploymentError(PenstockError):
    """A deployment cannot be started, found or ended; the text says where and what to do."""


@dataclass(frozen=True)
class Deployment:
    """A deployment that clients can use. ``daemon`` is None where no background process of ours holds it together, and
    ``metrics_url`` where none of ours serves its metrics.
    """

    name: str
    app: str
    redis_url: SecretStr
    ray_address: str
    partitions: int
    home: Path
    app_dir: Path | None = None
    embedded_store: bool = False
    nodes: int | None = None
    cpus_per_node: float | None = None
    daemon: ProcessRecord | None = None
    metrics_url: str | None = None

    def is_alive(self) -> bool:
        """Whether its background process runs; a deployment on somebody else's cluster counts as alive."""
        return self.daemon is None or self.daemon.is_alive()

    def write(self) -> None:
        """Publish it: from now on clients find it."""
        record = {
            "version": VERSION,
            "name": self.name,
            "app": self.app,
            "app_dir": str(self.app_dir) if self.app_dir else None,
            "redis_url": self.redis_url.get_secret_value(),
            "ray_address": self.ray_address,
            "partitions": self.partitions,
            "embedded_store": self.embedded_store,
            "nodes": self.nodes,
            "cpus_per_node": self.cpus_per_node,
            "metrics_url": self.metrics_url,
            "daemon_pid": self.daemon.pid if self.daemon else None,
            "daemon_started": self.daemon.started if self.daemon else None,
        }
        write_private(deployment_file(self.home), json.dumps(record, indent=2) + "\n")

    @classmethod
    def of(cls, record: dict[str, Any], home: Path) -> Self:
        """The deployment that a record describes. Raises KeyError or TypeError for a record of another shape."""
        pid = record["daemon_pid"]
        return cls(
            name=record["name"],
            app=record["app"],
            redis_url=SecretStr(record["redis_url"]),
            ray_address=record["ray_address"],
            partitions=record["partitions"],
            home=home,
            app_dir=Path(record["app_dir"]) if record["app_dir"] else None,
            embedded_store=record["embedded_store"],
            nodes=record["nodes"],
            cpus_per_node=record["cpus_per_node"],
            daemon=ProcessRecord(pid, record["daemon_started"]) if pid is not None else None,
            metrics_url=record.get("metrics_url"),
        )


def load_deployment(home: Path) -> Deployment | None:
    """The deployment that was recorded at ``home``, alive or not; None when there is none.

    Raises DeploymentError when the record cannot be understood.
    """
    try:
        record = read_deployment(home)
        return None if record is None else Deployment.of(record, home)
    except (ValueError, KeyError, TypeError) as error:
        raise DeploymentError(
            f"{deployment_file(home)} cannot be understood ({type(error).__name__}: {error}): "
            "another version of Penstock wrote it, or it is damaged. Remove it, and start the deployment again"
        ) from None


@dataclass
class Footprint:
    """What a local deployment's background process has started so far; kept in ``daemon.json``."""

    home: Path
    daemon: ProcessRecord | None = None
    processes: list[ProcessRecord] = field(default_factory=list)
    ray_directory: Path | None = None

    @staticmethod
    def path(home: Path) -> Path:
        """Where it is kept."""
        return home / "daemon.json"

    def write(self) -> None:
        """Keep it; call again whenever something has been started."""
        record = {
            "daemon": asdict(self.daemon) if self.daemon else None,
            "processes": [asdict(process) for process in self.processes],
            "ray_directory": str(self.ray_directory) if self.ray_directory else None,
        }
        write_private(self.path(self.home), json.dumps(record, indent=2) + "\n")

    @classmethod
    def read(cls, home: Path) -> Self | None:
        """What the last background process at ``home`` had started; None when it left nothing to say."""
        try:
            record = json.loads(cls.path(home).read_text(encoding="utf-8"))
            directory = record["ray_directory"]
            return cls(
                home,
                ProcessRecord(**record["daemon"]) if record["daemon"] else None,
                [ProcessRecord(**process) for process in record["processes"]],
                Path(directory) if directory else None,
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise DeploymentError(
                f"{cls.path(home)} cannot be understood ({type(error).__name__}): end what may still run there "
                "(`ps`), then remove the file"
            ) from None

    def add(self, pids: Sequence[int | None]) -> None:
        """Note processes by pid."""
        records = (ProcessRecord.of(pid) for pid in pids if pid is not None)
        self.processes.extend(record for record in records if record is not None)

    def is_running(self) -> bool:
        """Whether any of it still runs."""
        known = [self.daemon, *self.processes]
        return any(record is not None and record.is_alive() for record in known) or bool(
            self.ray_directory and processes_of(self.ray_directory)
        )

    def end(self, *, timeout_s: float) -> bool:
        """End all of it, the background process first, which ends the rest in order. Whether any of it still ran.

        Waits ``timeout_s`` for the order, then ends by force what is left, and only what was recorded.
        """
        was_running = self.is_running()
        if self.daemon is not None:
            end_all([self.daemon], timeout_s=timeout_s)
        end_all(self.processes, timeout_s=2.0)
        if self.ray_directory is not None:
            left = sweep(self.ray_directory)
            if left:
                raise DeploymentError(f"processes {left} of {self.ray_directory} cannot be ended")
            shutil.rmtree(self.ray_directory, ignore_errors=True)
        return was_running

    def remove(self) -> None:
        """Forget it."""
        self.path(self.home).unlink(missing_ok=True)


def make_home(home: Path) -> Path:
    """The home as an absolute path: made, private (0700), ours."""
    home = home.expanduser().absolute()
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if home.stat().st_uid != os.geteuid():
            raise DeploymentError(f"{home} belongs to another user: choose another home (--home, PENSTOCK_HOME)")
        home.chmod(0o700)
    except OSError as error:
        raise DeploymentError(
            f"{home} cannot be the home of a deployment ({error.strerror}): choose another one (--home, PENSTOCK_HOME)"
        ) from None
    return home


def with_approval_keys(settings: Settings, home: Path) -> Settings:
    """The settings with keys for approvals: the configured ones, or the home's own, made when it is first used."""
    if settings.approval_keys is not None:
        return settings
    return settings.model_copy(update={"approval_keys": SecretStr(make_approval_keys(home))})


def forget(home: Path) -> None:
    """Remove the records of a deployment that has ended; its store's data stay."""
    with contextlib.suppress(OSError):
        deployment_file(home).unlink(missing_ok=True)
        Footprint.path(home).unlink(missing_ok=True)


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the home against a second deployment, until the end of this process at the latest."""
    fd = os.open(home / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise already_running(home) from None
        yield
    finally:
        os.close(fd)


def already_running(home: Path) -> DeploymentError:
    """What to tell somebody who starts a second one."""
    footprint = Footprint.read(home)
    pid = footprint.daemon.pid if footprint and footprint.daemon else "unknown"
    return DeploymentError(
        f"a deployment is already running at {home} (process {pid}): "
        "end it with `penstock down`, or choose another home (--home, PENSTOCK_HOME)"
    )


def refuse_second(home: Path) -> None:
    """Refuse where a deployment is alive; clean up after one whose background process was killed."""
    footprint = Footprint.read(home)
    if footprint is not None:
        if footprint.daemon is not None and footprint.daemon.is_alive():
            raise already_running(home)
        log.warning("the last deployment at %s did not end in order: cleaning up after it", home)
        footprint.end(timeout_s=1.0)
        forget(home)
    recorded = load_deployment(home)
    if recorded is not None and recorded.daemon is None:
        raise DeploymentError(
            f"the deployment at {home} is on the Ray cluster at {recorded.ray_address}: "
            "end it with `penstock down`, or choose another home (--home, PENSTOCK_HOME)"
        )
