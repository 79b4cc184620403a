"""What the routes work with, put together once by `app`."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from weights.locate import Located

from .accounts import Accounts, Caller
from .jobs.service import JobService
from .media.fetch import Fetcher
from .media.results import ResultFiles
from .metrics import Metrics
from .rates import RateLimits
from .settings import DATABASE_NAME, Settings
from .worker.supervisor import WorkerSupervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    settings: Settings
    accounts: Accounts
    jobs: JobService
    rates: RateLimits
    results: ResultFiles
    fetcher: Fetcher
    worker: WorkerSupervisor
    metrics: Metrics
    weights: Located
    models: tuple[str, ...]
    """Names of the engine's models that can be asked for."""
    demo: bool
    """The weights are the built-in demo ones: every picture says so."""

    @property
    def ready(self) -> bool:
        """The worker can draw and new work is taken."""
        return self.worker.can_draw and self.jobs.accepting

    def disk_bytes(self) -> dict[str, int]:
        """What the data folder's parts take. Blocking: it looks at every file."""
        database = self.settings.data_dir.glob(f"{DATABASE_NAME}*")
        return {**self.results.disk_bytes(), "database": sum(path.stat().st_size for path in database)}


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def caller_of(request: Request) -> Caller:
    """Who sent this request; the guard has put it there before any route ran."""
    caller: Caller = request.state.caller
    return caller
