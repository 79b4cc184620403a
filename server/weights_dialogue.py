"""How `flux-server weights` speaks: results to standard output, questions and errors to standard error, exit status."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from weights.catalogue import Model

EXIT_STATUS = (
    "Exit status: 0 done; 1 something is missing, or failed; 2 the command line is wrong; 3 a licence is not accepted"
    " or the hub wants a token; 4 the disk is full, or would be; 5 a file is not what was published; 130 interrupted."
)


def show(as_json: bool, content: Mapping[str, Any], lines: Iterable[str]) -> None:
    """The result: `content` as JSON, or `lines`."""
    from .weights_text import as_json as dump

    if as_json:
        typer.echo(dump(content))
    else:
        for line in lines:
            typer.echo(line)


def say(lines: Iterable[str]) -> None:
    """What is no result, on standard error."""
    for line in lines:
        typer.echo(line, err=True)


def settle_licences(folder: Path, models: list[Model], *, accepted: bool) -> None:
    """Shows the licences of what is missing; asks for those that want acceptance, and records it.

    accepted: somebody said so on the command line. Raises LicenceNotAccepted after a no, and where nobody can be asked.
    """
    from weights.errors import LicenceNotAccepted
    from weights.licence import record_acceptance, to_accept
    from weights.stock import find_complete

    from .weights_text import licence_line

    missing = [model for model in models if not find_complete(folder, model)]
    say(
        licence_line(licence, [model for model in missing if model.licence == licence])
        for licence in dict.fromkeys(model.licence for model in missing)
    )
    for licence, group in to_accept(folder, missing).items():
        how = "--accept-licence"
        if not accepted:
            if not sys.stdin.isatty():
                raise LicenceNotAccepted(f"read {licence.page} and, if you accept it, pass --accept-licence")
            if not typer.confirm(f"Do you accept {licence.name}?", err=True):
                raise LicenceNotAccepted(f"{licence.name} was not accepted; nothing was fetched")
            how = "yes at the prompt"
        record_acceptance(folder, licence, group, how)


def confirm(question: str, ask: Any) -> None:
    """Asks, where `ask` is true. Ends the program with status 1 after a no, with 2 where there is nobody to ask."""
    if not ask:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask on: pass --yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


@contextmanager
def exit_statuses(as_json: bool) -> Iterator[None]:
    """Ends the program with one line and the right status for whatever goes wrong with weights."""
    from weights import errors

    try:
        yield
    except (errors.WeightsError, OSError, ValueError, KeyboardInterrupt) as error:
        text, status = _told(error), _status(error)
        if as_json:
            show(True, {"error": {"kind": type(error).__name__, "status": status, "text": text}}, ())
        say([text])
        raise typer.Exit(status) from None


def _status(error: BaseException) -> int:
    from weights import errors

    statuses: dict[type[BaseException], int] = {
        errors.UnknownModel: 2,
        errors.LicenceNotAccepted: 3,
        errors.AccessNeeded: 3,
        errors.NoSpace: 4,
        errors.WrongContent: 5,
        KeyboardInterrupt: 130,
    }
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 4
    return next((status for kind, status in statuses.items() if isinstance(error, kind)), 1)


def _told(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted. What arrived is kept; the same command goes on from there."
    return str(error) or type(error).__name__
