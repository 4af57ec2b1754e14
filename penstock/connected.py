"""Deployments on a Ray cluster that is somebody else's: our actors are there, nothing else is ours."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.registry import load_app
from cluster import session
from cluster.config import Settings
from penstock.admission_rules import put_given_rules
from penstock.deployment import Deployment, DeploymentError, forget, with_approval_keys
from penstock.policies import enforce_given

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("penstock", "actors", "cluster", "admission", "telemetry")


@contextlib.contextmanager
def import_path(directory: Path | None) -> Iterator[None]:
    """Find modules in a directory too, for a while."""
    if directory is None:
        yield
        return
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))


def up_connected(
    home: Path,
    address: str,
    app: str,
    app_dir: Path | None,
    settings: Settings,
    hosts_per_node: int | None,
    runtime_env: Mapping[str, Any] | None,
) -> Deployment:
    """Deploy supervisor and hosts to the Ray cluster at ``address``, send the code along, and record it at ``home``.

    Raises DeploymentError without a store's address, and what Ray raises.
    """
    if settings.redis_url is None:
        raise DeploymentError(
            f"a deployment on the Ray cluster at {address} needs a store that all its nodes can reach: "
            "set PENSTOCK_REDIS_URL, or give --redis-url"
        )
    from actors import supervisor

    with import_path(app_dir):
        load_app(app, settings)
    enforce_given(settings)
    put_given_rules(settings)
    # Code travels by import path: our rooms and the app's folder are packed once and unpacked on every node.
    sent: dict[str, Any] = {"py_modules": [str(ROOT / room) for room in ROOMS]}
    if app_dir is not None:
        sent["working_dir"] = str(app_dir.absolute())
    with session.connect(address, namespace=settings.name, runtime_env={**sent, **(runtime_env or {})}):
        supervisor.deploy(with_approval_keys(settings, home), app, hosts_per_node=hosts_per_node)
    deployment = Deployment(
        name=settings.name,
        app=app,
        redis_url=settings.redis_url,
        ray_address=address,
        partitions=settings.partitions,
        home=home,
        app_dir=app_dir,
    )
    deployment.write()
    return deployment


def down_connected(deployment: Deployment) -> None:
    """End supervisor and hosts of a recorded deployment, and forget it. The cluster and the store stay."""
    from actors import supervisor

    settings = Settings(home=deployment.home, name=deployment.name, redis_url=deployment.redis_url)
    with session.connect(deployment.ray_address, namespace=deployment.name):
        supervisor.shutdown(settings)
    forget(deployment.home)
