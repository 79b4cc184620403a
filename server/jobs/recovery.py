"""What a start takes up from the run before it: rows without files, files without rows, jobs without a worker."""

from __future__ import annotations

import structlog

from server.clock import Clock
from server.media.results import ResultFiles

from .database import JobDatabase

log = structlog.get_logger(__name__)


async def take_up(database: JobDatabase, results: ResultFiles, clock: Clock, *, file_ttl_s: float) -> None:
    """To be called once, before anything is dispatched or served.

    Afterwards no job runs, every succeeded job that is younger than file_ttl_s has its files, and no file is there
    that was being published for a job that does not name it.
    """
    await database.write(database.writer.clamp_times, now=clock.now())
    published = database.read.published()
    unnamed = results.withdraw_unnamed({name for job in published for name in job.files})
    if unnamed:
        log.info("pictures of an interrupted publication removed", files=unnamed)
    young = [job for job in published if clock.now() - job.finished_at < file_ttl_s]
    lost = [job.job_id for job in young if not all(results.find(name) for name in job.files)]
    for job_id in lost:
        log.warning("a result's files are gone; it is drawn again", job=job_id)
    for job in await database.write(database.writer.recover, now=clock.now(), lost=lost):
        log.info("job cancelled, nobody waits for it after the restart", job=job.id)
