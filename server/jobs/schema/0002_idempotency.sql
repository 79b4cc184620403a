-- What a repeated submission is recognised by, for as long as its job is kept.
ALTER TABLE jobs ADD COLUMN idempotency_key TEXT;
ALTER TABLE jobs ADD COLUMN fingerprint TEXT;

CREATE UNIQUE INDEX jobs_by_idempotency_key ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- How many wait for one caller.
CREATE INDEX jobs_waiting_by_owner ON jobs (owner) WHERE state = 'queued';
