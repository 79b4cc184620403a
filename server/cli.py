"""The `flux-server` command."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from filelock import FileLock, Timeout
from pydantic import ValidationError
from pydantic_settings import SettingsError

from weights.demo import is_demo

from .jobs_cli import commands as jobs_commands
from .settings import DATABASE_NAME, Settings, SettingsFileError
from .weights_cli import commands as weights_commands

cli = typer.Typer(
    name="flux-server",
    help="FLUX.1-dev and FLUX.1-Depth-dev on your own GPU, over Segmind's API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli.add_typer(weights_commands, name="weights")
cli.add_typer(jobs_commands, name="jobs")

NOTHING_TO_SERVE = """\
No weights to serve. To try the server now, with small random weights: flux-server serve --demo
With real ones: flux-server weights pull standard --weights DIR, then flux-server serve --weights DIR"""


def main() -> None:
    cli()


@cli.command()
def serve(
    demo: Annotated[bool, typer.Option("--demo", help="Use the small built-in demo weights.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for jobs and pictures.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of model folders in diffusers' layout.")] = None,
) -> None:
    """Serve until told to stop. Every other setting comes from FLUX_… variables or flux-server.toml."""
    settings = _settings(demo=demo or None, host=host, port=port, data_dir=data_dir, weights_dir=weights)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if settings.demo:
        settings = settings.model_copy(update={"weights_dir": build_demo_weights(settings.data_dir)})
    if settings.weights_dir is None:
        _fail(NOTHING_TO_SERVE)
    _check_weights(settings)
    _serve(settings)


@cli.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop after the pictures instead of serving on.")] = False,
    output: Annotated[Path, typer.Option(help="Where to put photo, depth map and pictures.")] = Path("demo-output"),
) -> None:
    """Start a server with demo weights and draw with it through Segmind's own SDK."""
    from .demo import run_demo

    raise typer.Exit(run_demo(output, once=once))


@cli.command()
def doctor(
    weights: Annotated[Path | None, typer.Option(help="Folder of model folders in diffusers' layout.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for jobs and pictures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print findings as JSON.")] = False,
) -> None:
    """Look at this machine and say what would stop the server from working. Exit status 1 when something would."""
    from .doctor import examine

    findings = examine(_settings(weights_dir=weights, data_dir=data_dir))
    if as_json:
        print(json.dumps([finding.to_json() for finding in findings], indent=2))
    else:
        for finding in findings:
            print(finding.line())
    raise typer.Exit(0 if all(finding.state != "bad" for finding in findings) else 1)


@cli.command()
def plans(
    card_gb: Annotated[
        list[float] | None, typer.Argument(help="Cards' memory in GB; without any, the usual ones.")
    ] = None,
    host_gb: Annotated[float, typer.Option(help="Free memory of the host in GB.", min=0)] = 64.0,
) -> None:
    """What is held where on a card of some size, with both models as published. `doctor` says it for this machine."""
    from pipelines.memory.table import CARDS_GIB, markdown

    for line in markdown(card_gb or CARDS_GIB, round(host_gb * 1e9)):
        print(line)


@cli.command()
def openapi() -> None:
    """Print the API's description (OpenAPI 3.1) as JSON."""
    from .app import create_app

    print(json.dumps(create_app(Settings()).openapi(), indent=2, ensure_ascii=False))


def build_demo_weights(data_dir: Path) -> Path:
    """Builds the demo weights once, in a process of its own: this one never imports torch. Returns their folder."""
    print("flux-server: preparing demo weights", flush=True)
    command = [sys.executable, "-P", "-m", "weights.demo", str(data_dir.resolve())]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if built.returncode:
        _fail("The demo weights could not be built; the lines above say why.")
    return Path(built.stdout.strip().splitlines()[-1])


def _settings(**given: Any) -> Settings:
    """Settings with what the command line gave on top. Ends the program with one line per wrong setting."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        # Only places and messages: the values may be keys.
        _fail("\n".join(f"{item['loc'][0] if item['loc'] else 'settings'}: {item['msg']}" for item in error.errors()))
    except (SettingsError, SettingsFileError) as error:
        _fail(str(error))


def _check_weights(settings: Settings) -> None:
    from .app import find_weights

    found = find_weights(settings)
    if not found.models:
        problems = "\n".join(f"  {problem}" for problem in found.problems)
        _fail(f"No usable model under {settings.weights_dir}:\n{problems}\n{NOTHING_TO_SERVE}")
    if settings.fault_switches and not is_demo(found.root):
        _fail("fault_switches: only for tests with the demo weights; with real ones, unset FLUX_FAULT_SWITCHES.")


def _serve(settings: Settings) -> None:
    import uvicorn

    from .app import create_app
    from .draining import DrainingServer
    from .logs import set_up_logs
    from .wire import WireLimits, bounded_http

    set_up_logs(settings)
    lock = _lock(settings.data_dir)
    _check_database(settings.data_dir)
    listener = _listen(settings)
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"flux-server: listening on {url} (ready when {url}/health/ready says so)", flush=True)
    app = create_app(settings)
    server = DrainingServer(
        app,
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
            http=bounded_http(
                WireLimits(connections=settings.max_connections, head_s=settings.head_limit_s),
                on_refused=app.state.metrics.rejected,
            ),
            ws="none",
        ),
    )
    # uvicorn raises the signal that stopped it once more when it is done; a stop that was asked for is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    door = app.state.admin_door
    if door:
        door.open(host, port)
    try:
        server.run(sockets=[listener])
    finally:
        if door:
            door.close()
        lock.release()


def _lock(data_dir: Path) -> FileLock:
    """Takes the data folder for this process. It is free again when the process ends, however that happens."""
    lock = FileLock(data_dir / "server.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _fail(f"{data_dir} belongs to another server that runs now. Stop it, or give this one its own --data-dir.")
    return lock


def _check_database(data_dir: Path) -> None:
    from .jobs.migrations import UnusableDatabase, check_file

    try:
        check_file(data_dir / DATABASE_NAME)
    except UnusableDatabase as error:
        _fail(str(error))


def _listen(settings: Settings) -> socket.socket:
    """The listening socket, taken before anything else is started, so that a busy port is said at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        _fail(f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Choose another --port.")
    listener.set_inheritable(False)
    return listener


def _fail(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    raise typer.Exit(2)
