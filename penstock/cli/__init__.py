"""The command line: data on the standard output, everything else on the standard error. See docs/cli.md."""


def main() -> None:
    """The entry point of ``penstock``."""
    from penstock.cli.app import run

    run()
