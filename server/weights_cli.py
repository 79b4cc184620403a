"""`flux-server weights`: fetch, check, import, find and remove model weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .weights_dialogue import EXIT_STATUS, confirm, exit_statuses, say, settle_licences, show

if TYPE_CHECKING:
    from weights.catalogue import Catalogue

BESIDE = Path("weights")
"""The weights folder where none is set: in the current folder."""

commands = typer.Typer(
    help="Fetch, check, import, find and remove model weights.",
    epilog=EXIT_STATUS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Root = Annotated[
    Path | None, typer.Option("--weights", help="Weights folder. Default: FLUX_WEIGHTS_DIR, else ./weights.")
]
Table = Annotated[Path | None, typer.Option(help="Another table of models, in the form of weights/catalogue.toml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON; progress and errors go to stderr.")]
NAMES_HELP = "Models by name, or standard, or safety; `ls --all` lists the names."
Names = Annotated[list[str], typer.Argument(help=NAMES_HELP, metavar="MODEL")]
SomeNames = Annotated[list[str] | None, typer.Argument(help=f"{NAMES_HELP} Default: all.", metavar="MODEL")]


@commands.command(epilog=EXIT_STATUS)
def ls(
    models: SomeNames = None,
    every: Annotated[bool, typer.Option("--all", help="List all depth estimators.")] = False,
    root: Root = None,
    catalogue: Table = None,
    as_json: AsJson = False,
) -> None:
    """What is here, what is missing, and what pulling it would cost. Status 1 when a named model is missing."""
    from weights.importing import linked_single_files
    from weights.stock import take_stock

    from .weights_text import stock_json, stock_lines

    with exit_statuses(as_json):
        folder, known = _folder(root), _catalogue(catalogue)
        holdings = take_stock(folder, known, known.find(models or known.models))
        singles = linked_single_files(folder)
        shown = known.sets.get("standard", ()) if not (models or every) else known.models
        show(as_json, stock_json(folder, holdings, singles), stock_lines(folder, holdings, singles, shown))
    raise typer.Exit(1 if models and any(holding.state != "here" for holding in holdings) else 0)


@commands.command(epilog=EXIT_STATUS)
def pull(
    models: Names,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licences of these models; for scripts.")
    ] = False,
    token: Annotated[
        str | None,
        typer.Option(help="Token of the hub. HF_TOKEN and `hf auth login` work too and do not show in process lists."),
    ] = None,
    root: Root = None,
    catalogue: Table = None,
    as_json: AsJson = False,
) -> None:
    """Fetch models, or what is missing of them. One that was cut goes on where it ended; HF_ENDPOINT names a mirror."""
    from weights.pull import pull

    from .weights_progress import shown_progress
    from .weights_text import pulled_json, pulled_line

    with exit_statuses(as_json):
        folder, known = _folder(root), _catalogue(catalogue)
        chosen = known.find(models)
        settle_licences(folder, chosen, accepted=accept_licence)
        with shown_progress() as progress:
            done = pull(folder, chosen, known, progress=progress, token=token)
        show(as_json, {"models": [pulled_json(pulled) for pulled in done]}, map(pulled_line, done))


@commands.command(epilog=EXIT_STATUS)
def verify(
    models: SomeNames = None,
    full: Annotated[bool, typer.Option("--full", help="Compare contents (sha256), not only sizes and forms.")] = False,
    root: Root = None,
    catalogue: Table = None,
    as_json: AsJson = False,
) -> None:
    """Check what is here. Status 5 when a file is truncated, altered or gone; 1 when a named model is not here."""
    from weights.demo import is_demo
    from weights.importing import IMPORTED_FOLDER
    from weights.stock import begun_folder
    from weights.verify import note_damage, verify, verify_single_files

    from .weights_progress import shown_progress
    from .weights_text import check_json, check_lines

    with exit_statuses(as_json), shown_progress() as progress:
        folder, known = _folder(root), _catalogue(catalogue)
        if is_demo(folder):
            raise ValueError(f"{folder} holds the demo weights: built by code, and nothing to compare them with")
        places = {model.name: begun_folder(folder, model) for model in known.find(models or known.models)}
        checks = [
            verify(known.models[name], place, full=full, progress=progress) for name, place in places.items() if place
        ]
        for check in checks:
            if not check.good:
                note_damage(check)
        if not models and (folder / IMPORTED_FOLDER).is_dir():
            checks.append(
                verify_single_files(folder / IMPORTED_FOLDER, known.single_files, full=full, progress=progress)
            )
        absent = [name for name, place in places.items() if models and place is None]
        lines = [line for check in checks for line in check_lines(check)]
        content = {"models": [check_json(check) for check in checks], "absent": absent}
        lines += [f"none {name}: not in {folder}" for name in absent]
        show(as_json, content, lines or [f"there are no weights in {folder}"])
    raise typer.Exit(5 if not all(check.good for check in checks) else 1 if absent or not checks else 0)


@commands.command("import", epilog=EXIT_STATUS)
def import_(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders.", metavar="PATH")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is recognised.")] = False,
    root: Root = None,
    catalogue: Table = None,
    as_json: AsJson = False,
) -> None:
    """Link weights that you have: diffusers folders, the hub's cache, ComfyUI's folders, single files, GGUF.

    Nothing is copied. Each is told with whether this version can load it. Status 1 when nothing is recognised.
    """
    from weights.importing import Linked, recognise, take_in

    from .weights_text import linked_json, linked_lines

    with exit_statuses(as_json):
        folder, known = _folder(root), _catalogue(catalogue)
        found = [item for path in paths for item in recognise(path, known)]
        linked = [Linked(item) if dry_run else take_in(folder, known, item) for item in found]
        lines = [line for item in linked for line in linked_lines(item)]
        show(as_json, {"imported": [linked_json(item) for item in linked]}, lines or ["nothing was recognised"])
    raise typer.Exit(0 if any(item.found.component != "other" for item in linked) else 1)


@commands.command(epilog=EXIT_STATUS)
def locate(
    model: Annotated[str, typer.Argument(help="Model by name.")],
    root: Root = None,
    catalogue: Table = None,
    as_json: AsJson = False,
) -> None:
    """Print a model's complete folder. Status 1, with the reasons on stderr, when there is none."""
    from weights.stock import locate_model

    with exit_statuses(as_json):
        folder, known = _folder(root), _catalogue(catalogue)
        (wanted, *_) = known.find([model])
        place, problems = locate_model(folder, wanted)
        problems = problems or ([] if place else [f"{wanted.name} is not in {folder}"])
        content = {"name": wanted.name, "folder": place, "problems": problems}
        show(as_json, content, [str(place)] if place else [])
        say(problems)
    raise typer.Exit(0 if place else 1)


@commands.command(epilog=EXIT_STATUS)
def rm(
    models: Names,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    root: Root = None,
    catalogue: Table = None,
    as_json: AsJson = False,
) -> None:
    """Remove models. Links go, never what they lead to; files that another model shares stay. Status 1 when absent."""
    from weights.stock import begun_folder, remove

    from .weights_text import gigabytes

    with exit_statuses(as_json):
        folder, known = _folder(root), _catalogue(catalogue)
        chosen = known.find(models)
        there = [model for model in chosen if begun_folder(folder, model)]
        confirm(f"Remove {', '.join(model.name for model in there)} from {folder}?", there and not yes)
        freed = {model.name: remove(folder, model) for model in there}
        absent = [model.name for model in chosen if model not in there]
        lines = [f"{name}: removed, {gigabytes(size)} freed" for name, size in freed.items()]
        content = {"removed": [{"name": name, "freed_bytes": size} for name, size in freed.items()], "absent": absent}
        show(as_json, content, [*lines, *(f"{name}: not in {folder}" for name in absent)])
    raise typer.Exit(1 if absent else 0)


def _folder(given: Path | None) -> Path:
    if given:
        return given
    from .cli import _settings

    if folder := _settings().weights_dir:
        return folder
    if (BESIDE / "__init__.py").exists():
        raise typer.BadParameter(f"./{BESIDE} is the program's own source here: name another folder with --weights")
    return BESIDE


def _catalogue(given: Path | None) -> Catalogue:
    from weights.catalogue import BUILT_IN, read_catalogue

    return read_catalogue(given or BUILT_IN)
