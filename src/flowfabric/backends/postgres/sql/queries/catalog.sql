-- Lanes, routes and the defaults of kinds.

-- name: lanes
-- Lanes that do not just give and take work.
SELECT lane, state FROM ff.lane WHERE state <> 'active';

-- name: published
SELECT namespace, kind, defaults FROM ff.kind_default;

-- name: routes
SELECT id, namespace, lane, kind, required, revision FROM ff.route WHERE revision > $1 ORDER BY revision;
