"""The Postgres backend: one function call per operation, in one round trip."""
