"""Models from the hub into the weights folder: planned in full first, then fetched, checked and linked."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from .catalogue import Catalogue, Model
from .download import PARTIAL_FOLDER, Downloader, Patience, Stopped
from .errors import Busy, LicenceNotAccepted, NotPullable
from .hub import Hub, RemoteFile
from .licence import to_accept
from .planning import ModelPlan, Planner, check_space
from .progress import Progress
from .receipt import Entry, Receipt, read_receipt, write_receipt
from .sharing import Shelf, link
from .stock import find_complete

CONNECTIONS = 4
"""Files that are fetched at the same time."""

KEPT_SUFFIX = ".replaced"

PATIENT = Patience()


@dataclass(frozen=True, slots=True)
class Pulled:
    """What was done for one model. downloaded, linked: paths in `folder`. resumed_bytes: there from an earlier try."""

    name: str
    folder: Path
    commit: str = ""
    downloaded: tuple[str, ...] = ()
    linked: tuple[str, ...] = ()
    downloaded_bytes: int = 0
    linked_bytes: int = 0
    resumed_bytes: int = 0


def pull(
    root: Path,
    models: Sequence[Model],
    catalogue: Catalogue,
    *,
    progress: Progress,
    token: str | None = None,
    patience: Patience = PATIENT,
) -> list[Pulled]:
    """Makes every one of `models` complete under `root`: what is there stays, what another model has is linked.

    Models that are complete are not asked for again. Before the first byte of a file, licences, access to gated
    repositories and free space are checked for all. Raises the WeightsErrors of `weights.errors`; whatever it raises,
    no file has its final name that is not whole and checked, and the next call goes on where this one ended.
    """
    folders = {model.name: find_complete(root, model) for model in models}
    missing = [model for model in models if folders[model.name] is None]
    if missing:
        _check_licences(root, missing)
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root):
            done = {pulled.name: pulled for pulled in _pull(root, missing, catalogue, progress, Hub(token), patience)}
    return [Pulled(model.name, folder) if (folder := folders[model.name]) else done[model.name] for model in models]


def _pull(
    root: Path, models: Sequence[Model], catalogue: Catalogue, progress: Progress, hub: Hub, patience: Patience
) -> list[Pulled]:
    planner = Planner(root, Shelf(root, catalogue, progress), progress)
    plans = [planner.plan(model, hub.list(model)) for model in models]
    for plan in plans:
        if plan.model.gated and (wanted := plan.files("download")):
            hub.check_access(plan.model, plan.commit, wanted[0].path)
    left = check_space(root, plans)
    total = sum(plan.download_bytes() for plan in plans)
    progress.begin("downloading", total, total - left)
    downloader = Downloader(hub=hub, progress=progress, stop=threading.Event(), patience=patience)
    return [_carry_out(plan, downloader) for plan in plans]


def _carry_out(plan: ModelPlan, downloader: Downloader) -> Pulled:
    _make_way(plan, downloader.progress)
    record = _Record(plan)
    downloads = plan.files("download")
    resumed = _download(plan, downloads, downloader, record)
    links = [step for step in plan.steps if step.how == "link" and step.source]
    for step in links:
        assert step.source
        link(step.source, plan.folder / step.file.path)
        record.verified(step.file)
    if problem := plan.model.problem(plan.folder):
        raise NotPullable(f"{plan.model.repository} does not hold all that is needed: {problem}")
    record.complete()
    shutil.rmtree(plan.folder / PARTIAL_FOLDER, ignore_errors=True)
    return Pulled(
        plan.model.name,
        plan.folder,
        plan.commit,
        tuple(file.path for file in downloads),
        tuple(step.file.path for step in links),
        plan.download_bytes() - resumed,
        sum(step.file.fingerprint.size or 0 for step in links),
        resumed,
    )


def _make_way(plan: ModelPlan, progress: Progress) -> None:
    """Renames files that are whole, not what is published, and not from here: they may be somebody's work."""
    for step in plan.steps:
        if step.keep:
            old = plan.folder / step.file.path
            progress.say(f"{old} is not what {plan.model.repository} publishes: kept as {old.name}{KEPT_SUFFIX}")
            old.rename(old.with_name(old.name + KEPT_SUFFIX))


def _download(plan: ModelPlan, files: Sequence[RemoteFile], downloader: Downloader, record: _Record) -> int:
    """Fetches several at a time; the first that fails stops the others. Returns the bytes that were there before."""

    def fetch(file: RemoteFile) -> int:
        resumed = downloader.fetch(plan.model, plan.commit, file, plan.folder)
        record.verified(file)
        return resumed

    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="pull") as pool:
        running = [pool.submit(fetch, file) for file in files]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            # Also where Ctrl-C ended the wait: the pool waits for its threads, and these end at their next block.
            if not all(future.done() and not future.exception() for future in running):
                downloader.stop.set()
                pool.shutdown(cancel_futures=True)
    return sum(_results(running))


def _results(futures: Sequence[Future[int]]) -> Iterator[int]:
    """Raises the error that stopped the others rather than theirs."""
    errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
        raise error
    return (future.result() for future in futures)


class _Record:
    """Keeps a model's receipt on disk true while its files arrive, from several threads."""

    def __init__(self, plan: ModelPlan) -> None:
        self._folder, self._lock = plan.folder, threading.Lock()
        before = read_receipt(plan.folder)
        entries = {step.file.path: Entry(step.file.fingerprint, step.how == "here") for step in plan.steps}
        files = {**before.files, **entries}
        plan.folder.mkdir(parents=True, exist_ok=True)
        self._write(Receipt(plan.model.repository, plan.commit, files, complete=False))

    def verified(self, file: RemoteFile) -> None:
        with self._lock:
            self._write(self._receipt.with_file(file.path, Entry(file.fingerprint, verified=True)))

    def complete(self) -> None:
        files = {path: entry for path, entry in self._receipt.files.items() if (self._folder / path).is_file()}
        self._write(Receipt(self._receipt.repository, self._receipt.commit, files))

    def _write(self, receipt: Receipt) -> None:
        self._receipt = receipt
        write_receipt(self._folder, receipt)


def _check_licences(root: Path, models: Sequence[Model]) -> None:
    if open_licences := to_accept(root, models):
        names = ", ".join(f"{licence.name} ({licence.page})" for licence in open_licences)
        raise LicenceNotAccepted(f"not accepted yet: {names}")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keeps a second pull out of the same folder. The lock ends with the process, however that ends."""
    try:
        with FileLock(root / ".pull.lock", timeout=0):
            yield
    except Timeout as error:
        raise Busy(f"another pull works on {root}; wait for it") from error
