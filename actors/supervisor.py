"""The supervisor: keeps a host on every CPU of every living node. It may die and come back without touching a run."""

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.admission_controller import ADMISSION, AdmissionController
from actors.admission_file import with_admission_file
from actors.dependency_file import with_operators_file
from actors.host import AgentHost
from actors.hub import DependencyHub
from actors.hub_link import hub_actor_name
from actors.placement import Place, reconcile
from actors.policy_file import with_policy_file
from actors.registry import load_app
from admission.dependency import as_plain
from cluster.config import Settings
from telemetry.log import configure_logging

SUPERVISOR: Final = "supervisor"
_PERIOD_S: Final = 1.0
_READY_S: Final = 60.0
_CONCURRENCY: Final = 100
_LOG: Final = logging.getLogger("penstock.supervisor")


def _actor_name(settings: Settings, what: str) -> str:
    return f"{settings.name}-{what}"


def _namespace(settings: Settings) -> str:
    return settings.name


class Supervisor:
    """A named, detached actor. Its state is what Ray says: living nodes, existing host actors."""

    async def __init__(  # type: ignore[misc]
        self, settings: dict[str, Any], app: str, hosts_per_node: int | None
    ) -> None:
        configure_logging()
        self._plain = settings
        self._settings = Settings(**settings)
        self._app = app
        self._hosts_per_node = hosts_per_node
        self._hosts: dict[Place, Any] = {}
        self._hubs: dict[str, Any] = {}
        self._admission: Any = None
        self._dependencies = load_app(app, self._settings).dependencies
        self._adopted = False
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._keeper = self._loop.create_task(self._keep())

    async def _keep(self) -> None:
        while not self._stopping:
            try:
                await self._loop.run_in_executor(None, self._reconcile)
            except Exception:
                _LOG.exception("the supervisor could not compare hosts with nodes; trying again")
            await asyncio.sleep(_PERIOD_S)

    def _reconcile(self) -> None:
        nodes = {
            node["NodeID"]: int(node["Resources"].get("CPU", 0))
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
        }
        if not self._adopted:
            self._forget_lost_nodes(nodes)
            self._keep_hubs()
            remote = _lasting(AdmissionController, self._settings, _actor_name(self._settings, ADMISSION))
            self._admission = remote.remote(self._plain)
            self._adopted = True
        changes = reconcile(nodes, frozenset(self._hosts), self._hosts_per_node)
        for place in changes.remove:
            _LOG.warning("node %s is gone: host %s is given up", place.node[:8], place.label)
            ray.kill(self._hosts.pop(place), no_restart=True)
        for place in changes.create:
            _LOG.info("host %s starts on node %s", place.label, place.node[:8])
            self._hosts[place] = self._create(place)

    def _forget_lost_nodes(self, nodes: dict[str, int]) -> None:
        """Ends host actors of nodes that died while no supervisor lived; Ray would hold them ready for ever."""
        prefix = _actor_name(self._settings, "host-")
        living = {Place(node, 0).label.rpartition("-")[0] for node in nodes}
        for found in ray.util.list_named_actors(all_namespaces=True):
            name, namespace = found["name"], found["namespace"]
            label = name.removeprefix(f"{self._settings.name}-")
            ours = namespace == _namespace(self._settings) and name.startswith(prefix)
            if ours and label.rpartition("-")[0] not in living:
                ray.kill(ray.get_actor(name, namespace=namespace), no_restart=True)

    def _keep_hubs(self) -> None:
        """One hub for each dependency of the app. Those that are there already learn what is declared now; Ray restarts
        them by itself, also on another node.
        """
        for name, dependency in self._dependencies.items():
            plain = as_plain(dependency)
            remote = _lasting(DependencyHub, self._settings, hub_actor_name(self._settings.name, name))
            self._hubs[name] = remote.remote(self._plain, plain)
            self._hubs[name].define.remote(plain)

    def _create(self, place: Place) -> Any:
        """The host actor of a place; an existing one (this supervisor was restarted) is taken as it is."""
        there = NodeAffinitySchedulingStrategy(place.node, soft=False)
        remote = _lasting(
            AgentHost, self._settings, _actor_name(self._settings, place.label), scheduling_strategy=there
        )
        return remote.remote(self._plain, self._app, place.label, place.node[:8])

    async def describe(self) -> list[dict[str, Any]]:
        """All hosts, as they describe themselves; those that are starting or restarting are left out."""
        asked = [host.describe.remote() for host in list(self._hosts.values())]
        answers = await asyncio.gather(
            *(asyncio.wait_for(asyncio.wrap_future(ask.future()), 5) for ask in asked), return_exceptions=True
        )
        return [answer for answer in answers if isinstance(answer, dict)]

    async def wanted(self) -> int:
        """How many hosts there should be."""
        return len(self._hosts)

    async def stop_hosts(self) -> None:
        """Hosts hand their runs back and end; nothing is started any more."""
        self._stopping = True
        await self._keeper
        await _end(self._hosts.values(), within_s=10)
        # Last, so that hosts can give back what they have.
        await _end([*self._hubs.values(), *filter(None, [self._admission])], within_s=5)


def _lasting(kind: type[Any], settings: Settings, name: str, **options: Any) -> Any:
    """What makes a named, detached actor that Ray restarts for ever; one that is there already is taken as it is."""
    remote: Any = ray.remote(kind)
    return remote.options(
        name=name,
        namespace=_namespace(settings),
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=_CONCURRENCY,
        **options,
    )


async def _end(actors: Iterable[Any], *, within_s: float) -> None:
    """Lets actors leave in order, and ends them then, those as well that have not left in time."""
    known = list(actors)
    leaving = [asyncio.wrap_future(actor.leave.remote().future()) for actor in known]
    if leaving:
        await asyncio.wait(leaving, timeout=within_s)
    for actor in known:
        ray.kill(actor, no_restart=True)


def plain_settings(settings: Settings) -> dict[str, Any]:
    """Settings as data for an actor's arguments, which Ray shows nowhere: some are secrets.

    The operators' files go along as text: nodes need no such files.
    """
    settings = with_admission_file(with_policy_file(with_operators_file(settings)))
    plain = settings.model_dump(mode="python")
    for secret in ("redis_url", "approval_keys"):
        if plain[secret] is not None:
            plain[secret] = plain[secret].get_secret_value()
    plain["home"] = str(settings.home)
    for file in ("dependencies", "policy"):
        plain[file] = None if plain[file] is None else str(plain[file])
    return plain


def deploy(settings: Settings, app: str, *, hosts_per_node: int | None = None, wait: bool = True) -> None:
    """Starts the supervisor (once) in the cluster that this process is connected to, and waits for its hosts.

    Raises:
        TimeoutError: hosts did not come up; the text carries what one of them says.
    """
    remote = _lasting(Supervisor, settings, _actor_name(settings, SUPERVISOR))
    supervisor = remote.remote(plain_settings(settings), app, hosts_per_node)
    if not wait:
        return
    until = time.monotonic() + _READY_S
    while True:
        hosts = ray.get(supervisor.describe.remote(), timeout=_READY_S)
        wanted = ray.get(supervisor.wanted.remote(), timeout=_READY_S)
        if wanted and len(hosts) == wanted:
            return
        if time.monotonic() > until:
            raise TimeoutError(
                f"{len(hosts)} of {wanted} hosts came up within {_READY_S:.0f} s. Can every node import the app "
                f"{app!r} and reach the store? The workers' logs in Ray's session folder say more"
            )
        time.sleep(0.1)


def shutdown(settings: Settings) -> None:
    """Drains and ends hosts and supervisor in the cluster that this process is connected to."""
    try:
        supervisor = ray.get_actor(_actor_name(settings, SUPERVISOR), namespace=_namespace(settings))
    except ValueError:
        return
    try:
        ray.get(supervisor.stop_hosts.remote(), timeout=20)
    except (ray.exceptions.RayError, TimeoutError) as error:
        _LOG.warning("the supervisor did not end its hosts in order: %s", error)
    ray.kill(supervisor, no_restart=True)
