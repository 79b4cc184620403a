CREATE TABLE IF NOT EXISTS jobs (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT    NOT NULL UNIQUE,
    owner           TEXT    NOT NULL,
    lane            INTEGER NOT NULL,
    attached        INTEGER NOT NULL,
    state           TEXT    NOT NULL,
    attempt         INTEGER NOT NULL DEFAULT 0,
    deaths          INTEGER NOT NULL DEFAULT 0,
    request         TEXT    NOT NULL,
    input_name      TEXT,
    dialect         TEXT    NOT NULL,
    price_micro_usd INTEGER NOT NULL,
    submitted_at    REAL    NOT NULL,
    queue_s         REAL,
    compute_s       REAL,
    total_s         REAL,
    finished_at     REAL,
    result          TEXT,
    error_code      TEXT,
    error_text      TEXT
) STRICT;

-- The next job to run, and how many wait.
CREATE INDEX IF NOT EXISTS jobs_by_turn ON jobs (state, lane, seq);

-- Finished jobs whose time may be over.
CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (finished_at) WHERE finished_at IS NOT NULL;

-- What each caller has spent, reservations of unfinished jobs included.
CREATE TABLE IF NOT EXISTS spending (
    owner     TEXT    PRIMARY KEY,
    micro_usd INTEGER NOT NULL
) STRICT;
