"""The composition root: puts the parts together and runs them for as long as the server runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from pipelines.depth_catalogue import find_estimator, mode_warning
from pipelines.models import FLUX_DEPTH_DEV, FLUX_DEV, MODELS
from weights.demo import is_demo
from weights.locate import Located, WantedEstimator, locate

from . import health
from .accounts import Accounts
from .admin import AdminDoor
from .api import admin, description, files, metrics, refusals
from .api.segmind import replies, routes
from .guard import Guard
from .jobs.database import JobDatabase
from .jobs.deadlines import QueueDeadline
from .jobs.dispatcher import Dispatcher
from .jobs.service import JobService
from .jobs.sweeper import Sweeper
from .measure import Measure
from .media.ballast import Ballast
from .media.fetch import Fetcher, FetchPolicy
from .media.results import ResultFiles
from .metrics import Metrics
from .rates import RateLimits
from .services import Services
from .settings import DATABASE_NAME, Settings
from .worker.protocol import PROTOCOL_VERSION, Load
from .worker.supervisor import WorkerSupervisor

log = structlog.get_logger(__name__)

TITLE = "FLUX local server"

SAFETY_ADVICE = (
    "put CompVis/stable-diffusion-safety-checker and Falconsai/nsfw_image_detection beside the models;"
    " until then replies say x-safety-check: unavailable"
)


def create_app(settings: Settings) -> FastAPI:
    """The server's ASGI application. Its folders, database and worker come up with its lifespan."""
    app = FastAPI(
        title=TITLE,
        version=_version(),
        description="FLUX.1-dev and FLUX.1-Depth-dev on your own GPU, over Segmind's v1 and v2 API.",
        lifespan=lambda app: _run(app, settings),
        redirect_slashes=False,
        # FastAPI's own pages load scripts from another host; this server works without one.
        docs_url=None,
        redoc_url=None,
    )
    accounts = Accounts(settings)
    app.state.accounts = accounts
    app.state.metrics = Metrics()
    app.include_router(health.router)
    app.include_router(files.router)
    app.include_router(metrics.router)
    if settings.admin:
        app.include_router(admin.router)
    app.include_router(routes.router)
    description.complete(app)
    refusals.install(app)
    app.state.admin_door = AdminDoor(settings.data_dir) if settings.admin else None
    app.add_middleware(
        Guard,
        accounts=accounts,
        body_limit_s=settings.body_limit_s,
        refuse=refusals.refuse,
        admin=app.state.admin_door,
    )
    if not accounts.open:
        # The key travels in a header that a foreign page does not have, so any origin may call.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=["*"],
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=replies.EXPOSED_HEADERS,
        )
    app.add_middleware(Measure, metrics=app.state.metrics)
    return app


def find_weights(settings: Settings) -> Located:
    """What is on disk under the weights folder; an empty finding when none is set."""
    if settings.weights_dir is None:
        return Located(
            root=Path(),
            models={},
            depth_estimator=None,
            safety_concepts=None,
            nsfw_detector=None,
            problems=("no weights folder is set: pass --weights DIR, or --demo for the built-in demo weights",),
        )
    estimator = find_estimator(settings.depth_estimator)
    return locate(
        settings.weights_dir,
        {name: spec.repository for name, spec in MODELS.items()},
        in_channels={name: spec.transformer_in_channels for name, spec in MODELS.items()},
        estimator=WantedEstimator(estimator.repository, estimator.files, estimator.name),
    )


def served_models(settings: Settings, weights: Located) -> tuple[str, ...]:
    """The engine models that this server has: those on disk, and depth by LoRA on dev where there is one."""
    names = list(weights.models)
    if depth_lora(settings, weights):
        names.append(FLUX_DEPTH_DEV.name)
    return tuple(names)


def depth_lora(settings: Settings, weights: Located) -> Path | None:
    """The control LoRA that makes a depth model of flux-dev: the one that is set, else one in the weights folder.

    None where flux-dev is not there, or flux-depth-dev is. A GGUF file's layers cannot be widened for it.
    """
    dev = weights.models.get(FLUX_DEV.name)
    if dev is None or FLUX_DEPTH_DEV.name in weights.models:
        return None
    return settings.depth_lora or (None if dev.transformer.form == "gguf" else weights.depth_lora)


@asynccontextmanager
async def _run(app: FastAPI, settings: Settings) -> AsyncIterator[None]:
    results = ResultFiles(settings.data_dir)
    results.prepare()
    database = JobDatabase(settings.data_dir / DATABASE_NAME)
    weights = find_weights(settings)
    worker = WorkerSupervisor(
        load_message(settings, weights, results.spool),
        load_limit_s=settings.load_limit_s,
        step_limit_s=settings.step_limit_s,
        spare=settings.spare_worker,
    )
    jobs = JobService(
        database,
        queue_limit=settings.queue_limit,
        owner_limit=settings.queued_per_key,
        result_ttl_s=settings.result_ttl_s,
    )
    jobs.on_settled = app.state.metrics.job_ended
    fetcher = Fetcher(_fetch_policy(settings))
    dispatcher = Dispatcher(
        database,
        jobs,
        worker,
        results,
        log_prompts=settings.log_prompts,
        run_limit_s=settings.run_limit_s,
        file_ttl_s=settings.file_ttl_s,
        min_free_bytes=settings.min_free_bytes,
        on_done=app.state.metrics.worker_reported,
    )
    deadline = QueueDeadline(database, jobs, queue_ttl_s=settings.queue_ttl_s)
    sweeper = Sweeper(
        database,
        results,
        result_ttl_s=settings.result_ttl_s,
        file_ttl_s=settings.file_ttl_s,
        ballast=Ballast(settings.data_dir),
    )
    app.state.services = Services(
        settings=settings,
        accounts=app.state.accounts,
        jobs=jobs,
        rates=RateLimits(per_minute=settings.rate_per_minute, burst=settings.rate_burst),
        results=results,
        fetcher=fetcher,
        worker=worker,
        metrics=app.state.metrics,
        weights=weights,
        models=served_models(settings, weights),
        demo=is_demo(weights.root),
    )

    async def drain() -> None:
        """Takes no new work, answers on, and returns when the running job is done or put back: once called again, at
        its next step."""
        jobs.stop_accepting()
        await dispatcher.stop(settings.drain_limit_s)

    app.state.drain = drain
    for problem in weights.problems:
        log.warning("weights", problem=problem)
    if warning := mode_warning(settings.depth_estimator, settings.depth_map_mode):
        log.warning("depth maps", problem=warning)
    if weights.safety_concepts is None or weights.nsfw_detector is None:
        log.warning("pictures are not checked for safety: the classifiers' weights are not there", advice=SAFETY_ADVICE)
    if weights.models:
        await worker.start()
    await dispatcher.start()
    await deadline.start()
    await sweeper.start()
    try:
        yield
    finally:
        await drain()
        await deadline.stop()
        await sweeper.stop()
        await worker.stop()
        await fetcher.aclose()
        database.close()


def load_message(settings: Settings, weights: Located, spool: Path) -> Load:
    """What a worker is told to load."""
    return Load(
        version=PROTOCOL_VERSION,
        models={name: sources.to_json() for name, sources in weights.models.items()},
        depth_estimator=_resolved(weights.depth_estimator),
        depth_estimator_name=settings.depth_estimator,
        depth_map_mode=settings.depth_map_mode,
        safety_concepts=_resolved(weights.safety_concepts),
        nsfw_detector=_resolved(weights.nsfw_detector),
        upsampler=_resolved(settings.prompt_upsampler),
        loras=_resolved(settings.lora_dir),
        depth_lora=_resolved(depth_lora(settings, weights)),
        depth_lora_scale=settings.depth_lora_scale,
        spool=str(spool.resolve()),
        metadata=settings.metadata,
        device=settings.device,
        dtype=settings.dtype,
        memory_plan=settings.memory_plan,
        memory_limit_bytes=settings.memory_limit_bytes,
        fast_tiers=settings.fast_tiers,
        compiled=settings.compile,
        attention=settings.attention,
        prepare_ahead=settings.prepare_ahead,
        batching=settings.batching,
        compile_cache=str((settings.data_dir / "compiled").resolve()),
        fault_switches=settings.fault_switches and is_demo(weights.root),
    )


def _resolved(folder: Path | None) -> str | None:
    return str(folder.resolve()) if folder else None


def _fetch_policy(settings: Settings) -> FetchPolicy:
    return FetchPolicy(
        enabled=settings.fetch_urls,
        allow_hosts=settings.fetch_hosts,
        private_hosts=settings.fetch_private_hosts,
        max_bytes=settings.max_picture_bytes,
    )


def _version() -> str:
    from importlib.metadata import version

    return version("flux-local-server")
