-- Lanes with how many routes each has.

-- name: page
SELECT lane.record, (SELECT count(DISTINCT route.route) FROM route WHERE route.lane = lane.lane)
FROM lane WHERE lane.lane > ? ORDER BY lane.lane LIMIT ?;
