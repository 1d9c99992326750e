-- What applying the functions needs to know of the schema.

-- name: list
SELECT p.oid, p.proname::text AS name, p.oid::regprocedure::text AS signature,
    p.xmin::text || ' ' || p.ctid::text AS version
FROM pg_catalog.pg_proc AS p
WHERE p.pronamespace = to_regnamespace($1::text)
ORDER BY p.oid;

-- name: grants
SELECT DISTINCT p.proname::text AS name, quote_ident(r.rolname) AS role
FROM pg_catalog.pg_proc AS p CROSS JOIN LATERAL aclexplode(p.proacl) AS g
JOIN pg_catalog.pg_roles AS r ON r.oid = g.grantee
WHERE p.pronamespace = to_regnamespace($1::text) AND g.grantee <> p.proowner;

-- name: unchecked
SET LOCAL check_function_bodies = off;

-- name: checked
SET LOCAL check_function_bodies = on;

-- name: validate_plpgsql
SELECT plpgsql_validator(p.oid)
FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_language AS l ON l.oid = p.prolang
WHERE p.pronamespace = to_regnamespace($1::text) AND l.lanname = 'plpgsql';

-- name: validate_sql
SELECT fmgr_sql_validator(p.oid)
FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_language AS l ON l.oid = p.prolang
WHERE p.pronamespace = to_regnamespace($1::text) AND l.lanname = 'sql';
