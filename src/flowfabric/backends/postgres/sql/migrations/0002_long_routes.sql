-- A route's text may be longer than what an index takes, so that its hash stands for it there.
DROP INDEX ff.route_place;

CREATE INDEX route_place ON ff.route (lane, namespace, hashtextextended(route, 0), id);
