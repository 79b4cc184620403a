"""`flux-server jobs`: look at a server's jobs, cancel them, send failed ones again.

Looking reads the database, with the server running or not. Changing goes through the running server, which alone
writes.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from .jobs.model import Job
    from .jobs.sqlite_store import SqliteStore

NOT_POSSIBLE, WRONG_CALL, NO_SERVER = 1, 2, 3

EXIT_STATUS = (
    "Exit status: 0 done; 1 there is no such job, or that cannot be done with it; 2 wrong command line, or no job "
    "database to read; 3 no server runs on this data folder."
)
ANSWER_LIMIT_S = 30.0

commands = typer.Typer(
    help="Look at jobs, cancel them, send failed ones again.",
    epilog=EXIT_STATUS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[Path | None, typer.Option(help="The server's data folder. Default: FLUX_DATA_DIR, else ./data.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[str, typer.Argument(metavar="ID")]


@commands.command(epilog=EXIT_STATUS)
def ls(
    state: Annotated[
        str | None, typer.Option(help="Only queued, running, succeeded, failed or cancelled ones.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 50,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """The newest jobs of all callers, without their prompts."""
    from .jobs.model import State

    if state is not None and state not in list(State):
        _fail(WRONG_CALL, f"--state should be one of {', '.join(State)}; got {state!r}")
    with _reading(data_dir) as store:
        jobs = store.latest(state=State(state) if state else None, limit=limit)
    rows = [_row(job) for job in jobs]
    _show(as_json, rows, [_line(row) for row in rows] or ["no jobs"])


@commands.command(epilog=EXIT_STATUS)
def show(job_id: JobId, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Everything that is known of one job, its prompt included."""
    from .logs import printable

    with _reading(data_dir) as store:
        job = store.get(job_id)
    if job is None:
        _fail(NOT_POSSIBLE, f"no job {job_id}; finished jobs are forgotten after a while")
    content = {**asdict(job), "state": job.state.value, "lane": job.lane.name.lower()}
    _show(
        as_json, content, [f"{name}: {printable(str(value))}" for name, value in content.items() if value is not None]
    )


@commands.command(epilog=EXIT_STATUS)
def cancel(job_id: JobId, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Cancel a job: at once while it waits, at its next step while it runs. Status 1 when it had ended otherwise."""
    answer = _ask_server(data_dir, job_id, "cancel")
    _show(as_json, answer, [f"{job_id}: {answer['state']}"])
    raise typer.Exit(0 if answer["state"] == "cancelled" else NOT_POSSIBLE)


@commands.command(epilog=EXIT_STATUS)
def retry(job_id: JobId, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Send a failed or cancelled job again, with the same seed, as a new job. Prints the new id."""
    answer = _ask_server(data_dir, job_id, "retry")
    _show(as_json, answer, [str(answer["id"])])


def _ask_server(data_dir: Path | None, job_id: str, action: str) -> dict[str, Any]:
    import httpx2

    from .admin import HEADER, PREFIX, read_pass

    folder = _folder(data_dir)
    try:
        found = read_pass(folder)
    except (OSError, ValueError, KeyError) as error:
        _fail(WRONG_CALL, f"the server's pass in {folder} cannot be read: {error}")
    if found is None:
        _fail(NO_SERVER, f"no server with FLUX_ADMIN on runs on {folder}; changing a job needs one")
    url = f"{found.url}{PREFIX}jobs/{_quoted(job_id)}/{action}"
    try:
        reply = httpx2.post(url, headers={HEADER: found.token}, timeout=ANSWER_LIMIT_S, trust_env=False)
    except httpx2.HTTPError as error:
        _fail(NO_SERVER, f"the server on {folder} does not answer at {found.url}: {type(error).__name__}")
    if reply.status_code != httpx2.codes.OK:
        _fail(NOT_POSSIBLE, str(reply.json().get("error", reply.text)))
    answer: dict[str, Any] = reply.json()
    return answer


def _quoted(job_id: str) -> str:
    from urllib.parse import quote

    return quote(job_id, safe="")


@contextmanager
def _reading(data_dir: Path | None) -> Iterator[SqliteStore]:
    from .jobs.migrations import UnusableDatabase, check_current
    from .jobs.sqlite_store import SqliteStore
    from .settings import DATABASE_NAME

    path = _folder(data_dir) / DATABASE_NAME
    if not path.is_file():
        _fail(WRONG_CALL, f"{path.parent} holds no job database; name the server's folder with --data-dir")
    try:
        check_current(path)
        store = SqliteStore(path, read_only=True)
        try:
            yield store
        finally:
            store.close()
    except (UnusableDatabase, sqlite3.Error) as error:
        _fail(WRONG_CALL, str(error))


def _folder(given: Path | None) -> Path:
    if given:
        return given
    from .cli import _settings

    return _settings().data_dir


def _row(job: Job) -> dict[str, Any]:
    from .clock import STEADY

    return {
        "id": job.id,
        "state": job.state.value,
        "model": job.request.model,
        "age_s": round(max(STEADY.now() - job.submitted_at, 0.0), 1),
        "attempt": job.attempt,
        "error_code": job.error_code,
    }


def _line(row: dict[str, Any]) -> str:
    error = row["error_code"] or ""
    return f"{row['id']}  {row['state']:<9}  {row['model']:<14}  {row['age_s']:>8.0f} s  {error}".rstrip()


def _show(as_json: bool, content: Any, lines: list[str]) -> None:
    print(json.dumps(content, indent=2) if as_json else "\n".join(lines))


def _fail(status: int, text: str) -> NoReturn:
    print(text, file=sys.stderr)
    raise typer.Exit(status)
