"""``python -m benchmarks.provider``: listens on loopback, says where in one line of JSON, and ends on SIGTERM."""

import argparse
import asyncio
import gc
import json
import os
import signal
import sys

import uvloop

from benchmarks.provider.server import serve

HOST = "127.0.0.1"


async def run(port: int, ready_fd: int) -> None:
    """Serves until SIGTERM or Ctrl-C."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    server, chosen = await serve(HOST, port)
    # What has been imported is never garbage: no pause of the collector's looks through it.
    gc.collect()
    gc.freeze()
    line = json.dumps({"url": f"http://{HOST}:{chosen}", "pid": os.getpid()}) + "\n"
    os.write(ready_fd, line.encode())
    if ready_fd > 2:
        os.close(ready_fd)
    await told.wait()
    server.close()


def main() -> int:
    """Reads the arguments and serves."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.provider", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: one that the system chooses (default)")
    parser.add_argument("--ready-fd", type=int, default=1, help="file descriptor for the ready line; default: stdout")
    arguments = parser.parse_args()
    uvloop.run(run(arguments.port, arguments.ready_fd))
    return 0


if __name__ == "__main__":
    sys.exit(main())
