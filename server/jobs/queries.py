"""Every SQL statement of the job store, by name."""

from __future__ import annotations

COLUMNS = (
    "seq, id, owner, lane, attached, state, attempt, deaths, request, dialect, price_micro_usd, submitted_at,"
    " queue_s, compute_s, total_s, finished_at, result, error_code, error_text, idempotency_key, fingerprint"
)

COUNT_QUEUED = "SELECT count(*) FROM jobs WHERE state = 'queued'"

COUNT_QUEUED_OF = "SELECT count(*) FROM jobs WHERE state = 'queued' AND owner = ?"

COUNT_BY_STATE_AND_LANE = "SELECT state, lane, count(*) FROM jobs GROUP BY state, lane"

INSERT = """
INSERT INTO jobs (id, owner, lane, attached, state, request, input_name, dialect, price_micro_usd, submitted_at,
    idempotency_key, fingerprint)
VALUES (:id, :owner, :lane, :attached, 'queued', :request, :input_name, :dialect, :price_micro_usd, :submitted_at,
    :idempotency_key, :fingerprint)
"""

GET = f"SELECT {COLUMNS} FROM jobs WHERE id = ?"  # noqa: S608

GET_BY_KEY = f"SELECT {COLUMNS} FROM jobs WHERE owner = ? AND idempotency_key = ?"  # noqa: S608

FORGET_KEY = "UPDATE jobs SET idempotency_key = NULL WHERE id = ?"

LIST = f"""
SELECT {COLUMNS} FROM jobs WHERE :state IS NULL OR state = :state ORDER BY seq DESC LIMIT :limit
"""  # noqa: S608

NEXT = "SELECT seq FROM jobs WHERE state = 'queued' ORDER BY lane, seq LIMIT 1"

# Of the next few in the lane whose turn it is, the first of the preferred model, else the first.
NEXT_PREFERRED = """
SELECT seq FROM (SELECT seq, lane, request FROM jobs WHERE state = 'queued' ORDER BY lane, seq LIMIT 32)
ORDER BY lane, json_extract(request, '$.model') IS NOT :model, seq LIMIT 1
"""

CLAIM = f"""
UPDATE jobs SET state = 'running', attempt = attempt + 1 WHERE seq = ({NEXT})
RETURNING {COLUMNS}
"""  # noqa: S608

CLAIM_PREFERRED = f"""
UPDATE jobs SET state = 'running', attempt = attempt + 1 WHERE seq = ({NEXT_PREFERRED})
RETURNING {COLUMNS}
"""  # noqa: S608

PEEK = f"SELECT {COLUMNS} FROM jobs WHERE seq = ({NEXT})"  # noqa: S608

PEEK_PREFERRED = f"SELECT {COLUMNS} FROM jobs WHERE seq = ({NEXT_PREFERRED})"  # noqa: S608

AHEAD = f"SELECT {COLUMNS} FROM jobs WHERE state = 'queued' ORDER BY lane, seq LIMIT 32"  # noqa: S608

CLAIM_ONE = f"""
UPDATE jobs SET state = 'running', attempt = attempt + 1 WHERE seq = ?
RETURNING {COLUMNS}
"""  # noqa: S608

FINISH = f"""
UPDATE jobs SET state = :state, queue_s = :queue_s, compute_s = :compute_s, total_s = :total_s,
    finished_at = :finished_at, result = :result, error_code = :error_code, error_text = :error_text
WHERE id = :id AND attempt = :attempt AND state = 'running'
RETURNING {COLUMNS}
"""  # noqa: S608

CANCEL_QUEUED = f"""
UPDATE jobs SET state = 'cancelled', finished_at = :finished_at, queue_s = :queue_s, compute_s = 0, total_s = :queue_s
WHERE id = :id AND state = 'queued'
RETURNING {COLUMNS}
"""  # noqa: S608

FAIL_QUEUED = f"""
UPDATE jobs SET state = 'failed', finished_at = :now, queue_s = max(:now - submitted_at, 0), compute_s = 0,
    total_s = max(:now - submitted_at, 0), error_code = :error_code, error_text = :error_text
WHERE state = 'queued' AND attempt = 0 AND submitted_at <= :submitted_before
RETURNING {COLUMNS}
"""  # noqa: S608

UNCLAIM = """
UPDATE jobs SET state = 'queued', attempt = attempt - 1 WHERE id = :id AND attempt = :attempt AND state = 'running'
"""

REQUEUE = """
UPDATE jobs SET state = 'queued', deaths = deaths + :deaths
WHERE id = :id AND attempt = :attempt AND state = 'running'
"""

SUCCEEDED = "SELECT id, finished_at, result FROM jobs WHERE state = 'succeeded'"

REOPEN = """
UPDATE jobs SET state = 'running', result = NULL, finished_at = NULL, queue_s = NULL, compute_s = NULL, total_s = NULL
WHERE id = ? AND state = 'succeeded'
"""

# After a restart nobody waits for attached jobs any more, and whatever ran has no worker.
RECOVER_ATTACHED = f"""
UPDATE jobs SET state = 'cancelled', finished_at = :now, queue_s = 0, compute_s = 0, total_s = 0
WHERE attached = 1 AND state IN ('queued', 'running')
RETURNING {COLUMNS}
"""  # noqa: S608

RECOVER_RUNNING = "UPDATE jobs SET state = 'queued' WHERE state = 'running'"

# Rows from before the machine's clock was set back: no age is negative.
CLAMP_TIMES = """
UPDATE jobs SET submitted_at = min(submitted_at, :now), finished_at = min(finished_at, :now)
WHERE submitted_at > :now OR finished_at > :now
"""

DELETE_EXPIRED = """
DELETE FROM jobs WHERE seq IN (
    SELECT seq FROM jobs WHERE finished_at IS NOT NULL AND finished_at <= :finished_before
        AND submitted_at <= :submitted_before
    LIMIT :limit
)
"""

INPUTS_IN_USE = """
SELECT DISTINCT input_name FROM jobs WHERE state IN ('queued', 'running') AND input_name IS NOT NULL
"""

SPENT = "SELECT micro_usd FROM spending WHERE owner = ?"

SPEND = """
INSERT INTO spending (owner, micro_usd) VALUES (:owner, :micro_usd)
ON CONFLICT (owner) DO UPDATE SET micro_usd = micro_usd + :micro_usd
"""
