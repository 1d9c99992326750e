-- How connections are set up, and the store's own row.

-- name: quick_check
PRAGMA quick_check(1);

-- name: read_schema
SELECT count(*) FROM sqlite_schema;

-- name: secure_delete
PRAGMA secure_delete = FAST;

-- name: temp_store
PRAGMA temp_store = MEMORY;

-- name: trusted_schema
PRAGMA trusted_schema = OFF;

-- name: cache_writer
PRAGMA cache_size = -8000;

-- name: cache_reader
PRAGMA cache_size = -2000;

-- name: query_only
PRAGMA query_only = ON;

-- name: synchronous
PRAGMA synchronous = FULL;

-- name: fullfsync
PRAGMA fullfsync = ON;

-- name: checkpoint_fullfsync
PRAGMA checkpoint_fullfsync = ON;

-- name: wal_autocheckpoint
PRAGMA wal_autocheckpoint = 0;

-- name: journal_size_limit
PRAGMA journal_size_limit = 67108864;

-- name: busy_timeout
PRAGMA busy_timeout = 5000;

-- name: busy_timeout_none
PRAGMA busy_timeout = 0;

-- name: read_page_count
PRAGMA page_count;

-- name: auto_vacuum
PRAGMA auto_vacuum = INCREMENTAL;

-- name: journal_mode
PRAGMA journal_mode = WAL;

-- name: application_id
PRAGMA application_id = 1181501025;

-- name: checkpoint_truncate
PRAGMA wal_checkpoint(TRUNCATE);

-- name: journal_delete
PRAGMA journal_mode = DELETE;

-- name: begin_read
BEGIN;

-- name: begin
BEGIN IMMEDIATE;

-- name: commit
COMMIT;

-- name: rollback
ROLLBACK;

-- name: has_ledger
SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'migration';

-- name: create_ledger
CREATE TABLE migration (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at_ms INTEGER NOT NULL
);

-- name: read_ledger
SELECT number, checksum FROM migration;

-- name: insert_ledger
INSERT INTO migration (number, name, checksum, applied_at_ms) VALUES (?, ?, ?, ?);

-- name: insert_store
INSERT INTO store (id, clock_ms, event_id, flow_partitions, budget_partitions, quota_partitions, created_at_ms)
VALUES (1, ?, 0, ?, ?, ?, ?);

-- name: read_partitions
SELECT flow_partitions, budget_partitions, quota_partitions FROM store WHERE id = 1;
