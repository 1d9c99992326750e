-- Copying the log back into the file.

-- name: checkpoint_passive
PRAGMA wal_checkpoint(PASSIVE);

-- name: checkpoint_truncate
PRAGMA wal_checkpoint(TRUNCATE);
