"""What a command says and how it ends.

In: what a command found out. Out: tables and progress for a person; or, with `--json`, exactly one JSON document on
standard output and everything else on standard error. Exit status 0: done; 1: failed, the message says at what and what
would do; 2: the command line itself was wrong.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import typer
from rich.console import Console, RenderableType
from rich.markup import escape

_FILE_COLUMNS: Final = 160  # of lines that go to a file or a pipe


class CommandFailed(Exception):
    """A command cannot go on: the message names the thing and what would do.

    Attributes:
        reason: the error's name in the JSON document.
    """

    def __init__(self, message: str, *, reason: str = "CommandFailed") -> None:
        super().__init__(message)
        self.reason = reason


class Output:
    """One command's output. `console` is where words for a person go."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(stderr=as_json, highlight=False)
        if not self.console.is_terminal:
            self.console.width = _FILE_COLUMNS
        self._errors = Console(stderr=True, soft_wrap=True, highlight=False)

    @property
    def live(self) -> bool:
        """True where a picture can be redrawn in place."""
        return self.console.is_terminal and not self.as_json

    def say(self, message: RenderableType = "") -> None:
        self.console.print(message)

    def result(self, document: Mapping[str, Any], *pictures: RenderableType) -> None:
        """The command's answer: the document with `--json`, else the pictures."""
        if self.as_json:
            json.dump(document, sys.stdout, indent=1, default=str)
            sys.stdout.write("\n")
            sys.stdout.flush()
        else:
            for picture in pictures:
                self.console.print(picture)

    def failed(self, reason: str, message: str, retry_after_s: float | None = None) -> None:
        if self.as_json:
            self.result({"error": {"reason": reason, "message": message, "retry_after_s": retry_after_s}})
        self._errors.print(f"[bold red]{escape(reason)}[/]: {escape(message)}")


@contextmanager
def command(as_json: bool) -> Iterator[Output]:
    """Around a command's work: what fails becomes a message and exit status 1."""
    from services.mesh.errors import SettingInvalid, TokenworksError
    from services.twin.traces import TraceInvalid
    from tokenworks.errors import CallError

    output = Output(as_json)
    try:
        yield output
    except CommandFailed as error:
        output.failed(error.reason, str(error))
    except CallError as error:
        output.failed(error.reason, error.message, error.retry_after_s)
    except TokenworksError as error:
        output.failed(error.reason, str(error), error.retry_after_s)
    except (SettingInvalid, TraceInvalid, OSError) as error:
        output.failed(type(error).__name__, str(error))
    else:
        return
    raise typer.Exit(1)
