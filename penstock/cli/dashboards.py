"""``penstock dashboards``: Grafana's dashboards and Prometheus' rules, as files."""

from pathlib import Path
from typing import Annotated, Final

import typer

from penstock.cli.outcome import Exit, Failure, guarded, say

group = typer.Typer(help="Grafana dashboards and Prometheus rules.", no_args_is_help=True)
_PROVIDER: Final = """\
# For Grafana's folder provisioning/dashboards; put the JSON files where `path` says.
apiVersion: 1
providers:
  - name: penstock
    folder: Penstock
    type: file
    options:
      path: /var/lib/grafana/dashboards/penstock
"""


@group.command()
@guarded
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made where it is missing.", show_default=False)],
    objective: Annotated[float, typer.Option(help="The part of runs that should succeed.")] = 0.99,
    runbooks: Annotated[
        str, typer.Option(metavar="URL", help="Where docs/runbooks can be read, for links in alerts.")
    ] = "docs/runbooks",
) -> None:
    """Write dashboards (JSON), their provisioning, and rules with alerts (YAML) for Grafana and Prometheus."""
    from telemetry.alerts import rule_file
    from telemetry.dashboard_panels import DASHBOARDS
    from telemetry.dashboards import text_of

    try:
        rules = rule_file(objective, runbooks.rstrip("/"))
    except ValueError as error:
        raise Failure(f"--objective: {error}", Exit.BAD_INPUT) from None
    files = {Path("dashboards", f"{each.uid}.json"): text_of(each) for each in DASHBOARDS}
    files |= {Path("provisioning", "penstock.yaml"): _PROVIDER, Path("rules", "penstock.yaml"): rules}
    try:
        for name, text in files.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(
            f"{error.filename or folder} cannot be written: {error.strerror}. Name a folder that you may write to",
            Exit.BAD_INPUT,
        ) from None
    say(f"{len(DASHBOARDS)} dashboards, their provisioning and the rules are in {folder}")
