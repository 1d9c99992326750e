-- The ledger of what was applied to a schema, and how two who migrate keep out of each other's way.

-- name: patience
SET LOCAL statement_timeout = 0;

-- name: lock_patience_none
SET LOCAL lock_timeout = 0;

-- name: lock_patience
SET LOCAL lock_timeout = '10s';

-- name: lock
SELECT pg_advisory_xact_lock(hashtext('flowfabric'), hashtext('migrate ' || $1::text));

-- name: who_acts
SELECT current_setting('role');

-- Act as a store's owner until the transaction ends, or acts as somebody else. A store that is being made has none yet.
-- name: act_as_owner
SELECT set_config('role', o.rolname::text, true)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_roles AS o ON o.oid = c.relowner
WHERE c.relnamespace = to_regnamespace($1::text) AND c.relname = 'migration' AND o.rolname <> current_user;

-- name: act_as
SELECT set_config('role', $1::text, true);

-- name: create_ledger
CREATE TABLE ff.migration (
    number integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at_ms bigint NOT NULL
);

-- name: create_functions
CREATE TABLE ff.function_set (
    id smallint PRIMARY KEY CHECK (id = 1),
    content_hash text NOT NULL,
    version text NOT NULL,
    applied_at_ms bigint NOT NULL
);

-- name: create_manual_clock
CREATE TABLE IF NOT EXISTS ff.manual_clock (now_ms bigint NOT NULL);

-- name: is_manual_clock_set
SELECT EXISTS (SELECT FROM ff.manual_clock);

-- name: insert_manual_clock
INSERT INTO ff.manual_clock (now_ms) VALUES ($1);

-- name: read_schema
SELECT n.oid IS NOT NULL AS exists,
    EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = n.oid AND relname = 'migration')
        AND EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = n.oid AND relname = 'function_set') AS has_ledger,
    EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = n.oid)
        OR EXISTS (SELECT FROM pg_catalog.pg_proc WHERE pronamespace = n.oid) AS is_used,
    CASE WHEN n.oid IS NULL THEN has_database_privilege(current_database(), 'CREATE')
        ELSE has_schema_privilege(n.oid, 'CREATE') END AS may_create,
    coalesce(pg_has_role(coalesce(
        (SELECT relowner FROM pg_catalog.pg_class WHERE relnamespace = n.oid AND relname = 'migration'), n.nspowner
    ), 'USAGE'), false) AS is_owner
FROM (SELECT $1::text AS name) AS asked LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = asked.name;

-- name: read_ledger
SELECT number, checksum FROM ff.migration ORDER BY number;

-- name: read_functions
SELECT content_hash, version FROM ff.function_set;

-- name: read_store
SELECT store_id::text AS store_id, flow_partitions, budget_partitions, quota_partitions, created_at_ms FROM ff.store;

-- name: insert_migration
INSERT INTO ff.migration (number, name, checksum, applied_at_ms) VALUES ($1, $2, $3, $4);

-- name: insert_functions
INSERT INTO ff.function_set (id, content_hash, version, applied_at_ms) VALUES (1, $1, $2, $3)
ON CONFLICT (id) DO UPDATE SET content_hash = excluded.content_hash, version = excluded.version,
    applied_at_ms = excluded.applied_at_ms;

-- name: insert_store
INSERT INTO ff.store (id, store_id, flow_partitions, budget_partitions, quota_partitions, created_at_ms)
VALUES (1, gen_random_uuid(), $1, $2, $3, $4);

-- name: now_ms
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint;

-- name: users
SELECT DISTINCT quote_ident(r.rolname) AS role
FROM pg_catalog.pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS g
JOIN pg_catalog.pg_roles AS r ON r.oid = g.grantee
WHERE c.relnamespace = to_regnamespace($1::text) AND c.relname = 'function_set'
    AND g.privilege_type = 'SELECT' AND g.grantee <> c.relowner;

-- name: unknown_roles
SELECT g.role FROM unnest($1::text[]) AS g (role)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = g.role);

-- name: not_let_in
SELECT g.role FROM unnest($2::text[]) AS g (role)
WHERE NOT has_schema_privilege(g.role, $1::text, 'USAGE')
    OR NOT has_table_privilege(g.role, $1::text || '.function_set', 'SELECT');
