"""Real Postgres servers for the tests of everything that runs on them: see `servers`."""
