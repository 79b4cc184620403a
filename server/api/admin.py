"""What the operator may do with everybody's jobs. The guard lets only the admin door's token through to here."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, Request

from server.admin import PREFIX
from server.errors import Conflict, NotFound
from server.jobs.model import Job, Lane, NewJob, State
from server.services import Services, services_of

CANCEL_LIMIT_S = 10.0
"""How long the answer waits for a running job to stop at its next step."""

RETRIED = (State.FAILED, State.CANCELLED)

router = APIRouter(prefix=f"{PREFIX}jobs", include_in_schema=False)


@router.post("/{job_id}/cancel")
async def cancel(request: Request, job_id: str) -> dict[str, str]:
    """Cancels a job and says how it ended. A job that was final before stays as it was."""
    services = services_of(request)
    job = _find(request, services, job_id)
    await services.jobs.cancel(job)
    try:
        job = await services.jobs.wait(job, CANCEL_LIMIT_S)
    except TimeoutError:
        job = _find(request, services, job_id)
    return {"id": job.id, "state": job.state.value}


@router.post("/{job_id}/retry")
async def retry(request: Request, job_id: str) -> dict[str, str]:
    """Submits a job that failed or was cancelled once more: the same request, seed included, as a new job."""
    services = services_of(request)
    job = _find(request, services, job_id)
    if job.state not in RETRIED:
        raise Conflict(f"Job {job_id} is {job.state.value}; only failed and cancelled jobs can be sent again.")
    picture = job.request.control_image or job.request.init_image
    if picture and not await services.results.keep_longer(picture):
        raise Conflict(f"The picture that job {job_id} works from is no longer on disk. Submit it anew.")
    again = await services.jobs.submit(_copy(job))
    return {"id": again.id, "state": again.state.value, "retry_of": job.id}


def _copy(job: Job) -> NewJob:
    return NewJob(
        id=str(uuid.uuid4()),
        owner=job.owner,
        lane=Lane.BATCH,
        attached=False,
        request=job.request,
        dialect={**job.dialect, "retry_of": job.id},
        price_micro_usd=job.price_micro_usd,
    )


def _find(request: Request, services: Services, job_id: str) -> Job:
    if not request.scope["state"].get("admin"):
        raise NotFound
    job = services.jobs.find_any(job_id)
    if job is None:
        raise NotFound(f"Job {job_id[:100]} not found; finished jobs are forgotten after a while.")
    return job
