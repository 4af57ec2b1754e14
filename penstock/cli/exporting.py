"""``penstock exporter``: metrics of a deployment for Prometheus, until it is ended."""

import signal
import threading
from typing import Annotated

import typer

from penstock.cli.connection import settings
from penstock.cli.outcome import Exit, Failure, guarded, say


@guarded
def exporter(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 9464,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets everybody read.")] = "127.0.0.1",
) -> None:
    """Serve the deployment's metrics for Prometheus at /metrics. Ends with Ctrl-C or SIGTERM."""
    from penstock.exporter import Exporter, ExporterError
    from telemetry.log import configure_logging

    configure_logging()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ended.set())
    try:
        with Exporter(settings(), host, port) as serving:
            say(f"metrics are at {serving.url}")
            ended.wait()
    except ExporterError as error:
        raise Failure(str(error), Exit.BAD_INPUT) from None
