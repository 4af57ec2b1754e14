"""How commands end: exit codes, and what is said of errors that are to be expected."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, NoReturn, ParamSpec

import typer

if TYPE_CHECKING:
    from penstock.views import BatchStatus

P = ParamSpec("P")


class Exit(IntEnum):
    """The exit codes; their meaning is in :data:`EXIT_CODES`."""

    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    NOT_ALL_SUCCEEDED = 3
    TIMED_OUT = 4
    UNKNOWN = 5
    NO_STORE = 6
    REFUSED = 7
    INTERRUPTED = 130
    NO_READER = 141


EXIT_CODES = """\
Exit codes: 0 done; 1 the command failed; 2 wrong usage or bad input; 3 some runs did not succeed; 4 time-out; \
5 the outcome of some runs is unknown (confirmation_unknown); 6 no deployment, or its store cannot be reached; \
7 some jobs were refused: come back later; 130 interrupted (Ctrl-C)."""


class Failure(Exception):
    """Ends a command with a message and an exit code."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code


def say(message: str) -> None:
    """A message for people, on the standard error."""
    typer.echo(plain(message), err=True)


def plain(text: str) -> str:
    """The text without what a terminal would obey: agents' messages may hold anything."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "�" for letter in text)


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose expected errors end it with one message and the right exit code, never with a traceback."""

    @functools.wraps(command)
    def guard(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(Exit.INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our output has enough (`| head`); the interpreter must not try to flush again at its end.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(Exit.NO_READER) from None
        except Exception as error:
            _end(error)

    return guard


def _end(error: Exception) -> NoReturn:
    code = code_of(error)
    if code is None:
        raise error
    from telemetry.redaction import redact

    say(f"error: {redact(_text(error))}")
    raise typer.Exit(code) from None


def code_of(error: BaseException) -> Exit | None:
    """The exit code of an error that is to be expected; None for a defect of ours."""
    from pydantic import ValidationError
    from redis.exceptions import RedisError

    from actors.errors import DefinitionError, PenstockError
    from admission.approval_errors import ApprovalRefused
    from cluster.errors import StoreError, StoreFull
    from penstock.errors import (
        BatchFileError,
        CannotFork,
        InvalidBatch,
        InvalidBatchKey,
        InvalidResolution,
        InvalidText,
        NotTheOpenEffect,
        Refused,
        SubmissionInterrupted,
        UnusableSpec,
        WaitTimedOut,
    )

    match error:
        case Failure():
            return error.code
        case SubmissionInterrupted():
            return code_of(error.__cause__) if error.__cause__ is not None else Exit.FAILED
        case InvalidBatch() | InvalidBatchKey() | BatchFileError() | CannotFork() | UnusableSpec():
            return Exit.BAD_INPUT
        case DefinitionError() | ValidationError() | InvalidResolution() | NotTheOpenEffect() | InvalidText():
            return Exit.BAD_INPUT
        case Refused():
            return Exit.REFUSED
        case WaitTimedOut():
            return Exit.TIMED_OUT
        case StoreFull():
            return Exit.FAILED
        case StoreError() | RedisError():
            return Exit.NO_STORE
        case PenstockError() | ApprovalRefused() | OSError():
            return Exit.FAILED
    # Ray's errors and the embedded store's, without importing their modules for it.
    names = {each.__name__ for each in type(error).__mro__}
    return Exit.FAILED if names & {"RaySessionError", "EmbeddedValkeyError", "ForeignRoomError"} else None


def _text(error: Exception) -> str:
    from pydantic import ValidationError
    from redis.exceptions import RedisError

    if isinstance(error, ValidationError):
        # Settings: the values stay unsaid, one of them is a URL with a password.
        parts = [
            f"PENSTOCK_{'_'.join(str(part).upper() for part in item['loc'])}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        return "settings are not valid: " + "; ".join(parts)
    if isinstance(error, RedisError):
        return f"the store refused a command: {error}"
    return str(error) or type(error).__name__


def code_of_status(status: "BatchStatus") -> Exit:
    """What a batch's state means for a script."""
    if status.by_state.get("confirmation_unknown"):
        return Exit.UNKNOWN
    return Exit.OK if status.by_state.get("succeeded", 0) == status.total else Exit.NOT_ALL_SUCCEEDED
