"""The commands. Whatever is slow to import is imported by the command that needs it: `--help` is at once."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import admission as admission_commands
from penstock.cli import approvals as approval_commands
from penstock.cli import dashboards as dashboard_commands
from penstock.cli import dependencies as dependency_commands
from penstock.cli import lineage as lineage_commands
from penstock.cli import policy as policy_commands
from penstock.cli import queue as queue_commands
from penstock.cli import shown
from penstock.cli import trace as trace_command
from penstock.cli import trail as trail_command
from penstock.cli import unknown as unknown_commands
from penstock.cli.connection import ask, connected, environment_settings, in_loop, settings
from penstock.cli.evaluating import evaluation
from penstock.cli.exporting import exporter
from penstock.cli.outcome import EXIT_CODES, Exit, Failure, guarded, say

if TYPE_CHECKING:
    from penstock.client import Client
    from penstock.submit_views import SubmitReport

cli = typer.Typer(
    name="penstock",
    help=f"Run very many AI agents at once, durably.\n\n{EXIT_CODES}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cli.add_typer(dependency_commands.group, name="deps")
cli.add_typer(dashboard_commands.group, name="dashboards")
cli.add_typer(policy_commands.group, name="policy")
cli.add_typer(admission_commands.group, name="admission")
for _command in (approval_commands.approvals, approval_commands.approve, approval_commands.deny):
    cli.command()(_command)
cli.command(name="eval")(evaluation)
cli.command()(exporter)

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to the standard output.")]
BatchArgument = Annotated[str, typer.Argument(metavar="BATCH", help="The batch's key.", show_default=False)]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.", show_default=False)]
AppOption = Annotated[
    str | None, typer.Option("--app", metavar="MODULE", help="Module with the agents, by import path.")
]
AppDirOption = Annotated[Path | None, typer.Option(help="Folder to import the app from.", show_default=False)]
HomeOption = Annotated[
    Path | None, typer.Option(help="The local deployment's folder.", envvar="PENSTOCK_HOME", show_default=False)
]
TimeoutOption = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Watch no longer than this (exit code 4).")
]
RetryShedOption = Annotated[
    bool, typer.Option("--retry-shed", help="Come back by the calendar with what is refused or shed, until all is in.")
]


def run() -> None:
    """Runs the command line that the process was given."""
    cli()


@cli.callback()
def common(home: HomeOption = None) -> None:
    """Takes what goes before every command."""
    if home is not None:
        os.environ["PENSTOCK_HOME"] = str(home.absolute())


# The deployment


@cli.command()
@guarded
def up(
    app: AppOption = None,
    app_dir: AppDirOption = None,
    nodes: Annotated[int, typer.Option(min=1, help="Local Ray nodes.")] = 2,
    cpus_per_node: Annotated[float, typer.Option(min=0.1, help="CPUs of each of them; a host for each CPU.")] = 1,
    hosts_per_node: Annotated[int | None, typer.Option(min=1, help="Hosts of each node instead.")] = None,
    address: Annotated[str | None, typer.Option(metavar="IP:PORT", help="Deploy to this Ray cluster instead.")] = None,
    redis_url: Annotated[
        str | None, typer.Option(metavar="URL", help="A store of your own; better in PENSTOCK_REDIS_URL (no history).")
    ] = None,
    dependencies: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML file of dependencies, beside the app's own.", envvar="PENSTOCK_DEPENDENCIES"
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file with the policy: who may do what.", envvar="PENSTOCK_POLICY"),
    ] = None,
    admission: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML file with rules for admission: classes, tenants.", envvar="PENSTOCK_ADMISSION"
        ),
    ] = None,
    home: HomeOption = None,
    as_json: AsJson = False,
) -> None:
    """Start a deployment: an embedded store, local Ray nodes and hosts that serve the app; or on a cluster of yours."""
    if app is None:
        raise Failure("name the module with your agents: penstock up --app my_package.app", Exit.BAD_INPUT)
    common(home)
    from actors.admission_file import with_admission_file
    from actors.dependency_file import with_operators_file
    from actors.policy_file import with_policy_file
    from penstock import local

    known = environment_settings()
    if dependencies is not None:  # its text goes along: neither daemon nor nodes need to find the file
        known = with_operators_file(known.model_copy(update={"dependencies": dependencies, "dependencies_yaml": ""}))
    if policy is not None:
        known = with_policy_file(known.model_copy(update={"policy": policy, "policy_yaml": ""}))
    if admission is not None:
        known = with_admission_file(known.model_copy(update={"admission": admission, "admission_yaml": ""}))
    # A remote cluster gets a folder only when it is named: everything in it is sent along.
    folder = Path.cwd() if app_dir is None and address is None else app_dir
    say(f"starting a deployment of {app} …")
    made = local.up(
        known.home,
        app=app,
        app_dir=folder,
        nodes=nodes,
        cpus_per_node=cpus_per_node,
        hosts_per_node=hosts_per_node,
        settings=known,
        address=address,
        redis_url=redis_url,
    )
    facts = {"name": made.name, "app": made.app, "home": str(made.home), "ray_address": made.ray_address}
    facts |= {"metrics_url": made.metrics_url} if made.metrics_url else {}
    if as_json:
        shown.data(facts)
        return
    say(f"deployment {made.name} of {made.app} is ready, Ray at {made.ray_address}")
    if made.metrics_url:
        say(f"metrics for Prometheus: {made.metrics_url}")
    say("next: penstock submit FILE.jsonl --watch; penstock status; penstock down")


@cli.command()
@guarded
def down(home: HomeOption = None, as_json: AsJson = False) -> None:
    """End the local deployment and everything that it started. Its runs are kept for the next one."""
    common(home)
    from penstock import local

    place = environment_settings().home
    ended = local.down(place)
    if as_json:
        shown.data({"ended": ended, "home": str(place)})
    else:
        say(f"ended the deployment at {place}" if ended else f"no deployment is running at {place}")


# Watching over batches


@cli.command()
@guarded
def submit(
    file: Annotated[
        str, typer.Argument(metavar="FILE.jsonl", help="JSON lines, one job each; - is the standard input.")
    ],
    batch: Annotated[
        str | None, typer.Option(metavar="KEY", help="Key of the batch; by default a digest of the file's content.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Watch the batch until it has ended.")] = False,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave bad lines out, submit the others.")
    ] = False,
    retry_shed: RetryShedOption = False,
    refused: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write all refused jobs to this file as JSON lines.", show_default=False),
    ] = None,
    timeout: TimeoutOption = None,
    app: AppOption = None,
    app_dir: AppDirOption = None,
    as_json: AsJson = False,
) -> None:
    """Submit a batch file; the same file twice makes no job twice. Tells what is refused, and when to come back."""
    from penstock.batchfile import spooled
    from penstock.cli.submitting import app_at_hand, end_of_submission, refused_lines, submitted, tell_report
    from penstock.cli.watching import SubmissionTeller, watch_batch

    found, teller = settings(), SubmissionTeller()
    with spooled(file, sys.stdin.buffer) as source, refused_lines(refused) as on_refused:

        async def work() -> "SubmitReport":
            async with connected(found, app_at_hand(found, app, app_dir)) as client:
                with teller:
                    return await client.submit_file(
                        source, batch=batch, skip_invalid=skip_invalid, retry_refused=retry_shed,
                        on_refused=on_refused, on_progress=teller,
                    )  # fmt: skip

        report = submitted(work, teller, as_json=as_json)
    tell_report(report, as_json=as_json, all_in=refused)
    if watch and report.accepted + report.existing:
        watch_batch(found, report.batch, timeout, as_json=as_json, retry_shed=retry_shed)
    end_of_submission(report)


@cli.command()
@guarded
def watch(
    batch: BatchArgument, timeout: TimeoutOption = None, retry_shed: RetryShedOption = False, as_json: AsJson = False
) -> None:
    """Watch a batch until it has ended. Ctrl-C ends the watching only."""
    from penstock.cli.watching import watch_batch

    watch_batch(settings(), batch, timeout, as_json=as_json, retry_shed=retry_shed)


@cli.command()
@guarded
def status(
    batch: Annotated[str | None, typer.Argument(metavar="[BATCH]", help="By default the deployment.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a batch, or the deployment with its newest batches."""
    if batch is None:
        whole = ask(lambda client: client.deployment())
        shown.data(whole) if as_json else shown.deployment(whole)
        by_state = whole.by_state
    else:
        key = batch
        one = ask(lambda client: client.status(key))
        shown.data(one) if as_json else shown.batch(one)
        by_state = one.by_state
    if not as_json:
        unknown_commands.point_to_unknown(by_state, batch)


@cli.command()
@guarded
def results(
    batch: BatchArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Always so: one JSON object a line.")] = True,
) -> None:
    """Write the results of a batch as JSON lines, one a run that has ended, in no particular order."""
    import msgspec

    from penstock.cli.watching import end_of

    async def work(client: "Client") -> Any:
        encoder = msgspec.json.Encoder()
        async for page in client.result_pages(batch):
            sys.stdout.buffer.write(encoder.encode_lines(page))
        return await client.status(batch)

    sys.stdout.flush()
    last = ask(work)
    sys.stdout.buffer.flush()
    if not last.settled:
        say(f"{last.total - last.ended:,} of {last.total:,} runs have not ended: penstock watch {batch}")
        raise typer.Exit(Exit.NOT_ALL_SUCCEEDED)
    end_of(last)


# Looking at runs


@cli.command()
@guarded
def runs(
    batch: Annotated[str | None, typer.Option(metavar="KEY", help="Of this batch only.")] = None,
    state: Annotated[str | None, typer.Option(help="In this state only, such as running or failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List runs, the newest first."""
    from cluster.lifecycle import RunState

    if state is not None and state not in set(RunState):
        raise Failure(f"there is no state {state!r}; states: {', '.join(RunState)}", Exit.BAD_INPUT)
    found = ask(lambda client: client.runs(batch=batch, state=state, limit=limit))
    if as_json:
        for each in found:
            shown.data(each)
    elif found:
        shown.runs(found)
    else:
        say("no runs")


@cli.command()
@guarded
def show(run: RunArgument, as_json: AsJson = False) -> None:
    """Show everything that is known of a run, with its journal."""
    view = ask(lambda client: client.show(run))
    shown.data(view) if as_json else shown.run(view)
    if not as_json:
        unknown_commands.point_to_run(view)


@cli.command()
@guarded
def why(run: RunArgument, as_json: AsJson = False) -> None:
    """Say why a run is where it is: what it waits for, who owns the wait, what bounds it, what comes next."""
    from penstock.cli.outcome import plain

    answer = ask(lambda client: client.why(run))
    shown.data(answer) if as_json else typer.echo(plain(answer.text))


cli.command()(trace_command.trace)
cli.command()(trail_command.trail)


# Changing things


@cli.command()
@guarded
def cancel(
    target: Annotated[
        str, typer.Argument(metavar="RUN|BATCH", help="A run's id or a batch's key.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Cancel a run, or all runs of a batch: queued and waiting ones at once, running ones at their next step."""
    count = ask(lambda client: client.cancel(target))
    if as_json:
        shown.data({"target": target, "cancelled": count})
    else:
        runs_are = "1 run is" if count == 1 else f"{count:,} runs are"
        say(f"{runs_are} cancelled, or will be at the next step" if count else "nothing was left to cancel")


lineage_commands.add_to(cli)
unknown_commands.add_to(cli)
queue_commands.add_to(cli)


@cli.command()
@guarded
def drain(
    host: Annotated[str, typer.Argument(metavar="HOST", help="See `penstock hosts`.", show_default=False)],
    undo: Annotated[bool, typer.Option("--undo", help="Let it claim runs again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a host claim nothing more and hand its runs back, so that it can be taken away."""
    ask(lambda client: client.drain(host, undo=undo))
    if as_json:
        shown.data({"host": host, "draining": not undo})
    else:
        say(f"host {host} {'claims runs again' if undo else 'drains: see `penstock hosts`'}")


@cli.command()
@guarded
def hosts(as_json: AsJson = False) -> None:
    """List the hosts and their leases."""
    found = ask(lambda client: client.hosts())
    if as_json:
        for each in found:
            shown.data(each)
    elif found:
        shown.hosts(found)
    else:
        say("no hosts are registered: start some with `penstock up --app MODULE`")


@cli.command()
@guarded
def demo(
    jobs: Annotated[int, typer.Option(min=1, help="How many jobs to submit.")] = 1000,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to this file as JSON.")
    ] = None,
    kill: Annotated[bool, typer.Option("--kill/--no-kill", help="Kill a host half-way.")] = True,
) -> None:
    """Show it all: a local cluster, the refund desk's jobs, a host killed half-way, and what became of them."""
    from penstock.demo import run_demo

    raise typer.Exit(run_demo(jobs=jobs, json_file=json_file, kill=kill))


@cli.command()
@guarded
def doctor(as_json: AsJson = False) -> None:
    """Look for what is wrong with this machine and the deployment, and say what to do about it."""
    from penstock.doctor import examine, failed

    checks = in_loop(examine(settings()))
    if as_json:
        shown.data(checks)
    else:
        shown.checks(checks)
    if failed(checks):
        unreachable = any(check.name == "store" for check in checks)
        raise typer.Exit(Exit.NO_STORE if unreachable else Exit.FAILED)
