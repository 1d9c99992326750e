-- The transaction around a read.

-- name: begin
BEGIN;

-- name: end
COMMIT;
