-- Lanes, routes and the defaults of kinds.

-- name: find_lane
SELECT record FROM lane WHERE lane = ?;

-- name: store_lane
INSERT INTO lane (lane, record) VALUES (?, ?) ON CONFLICT (lane) DO UPDATE SET record = excluded.record;

-- name: find_route
SELECT id FROM route WHERE lane = ? AND route = ? AND namespace = ?;

-- name: count_routes
SELECT
    EXISTS (SELECT 1 FROM route WHERE lane = ? AND route = ?),
    (SELECT count(DISTINCT route) FROM route WHERE lane = ?);

-- name: add_route
INSERT INTO route (namespace, lane, route, kind, required) VALUES (?, ?, ?, ?, ?);

-- name: route_by_id
SELECT id, namespace, lane, kind, required FROM route WHERE id = ?;

-- name: routes_of_lane
SELECT id, namespace, lane, kind, required FROM route WHERE lane = ? AND namespace = ? ORDER BY id;

-- name: find_defaults
SELECT defaults FROM kind_default WHERE namespace = ? AND kind = ?;

-- name: store_defaults
INSERT INTO kind_default (namespace, kind, defaults) VALUES (?, ?, ?)
ON CONFLICT (namespace, kind) DO UPDATE SET defaults = excluded.defaults;
