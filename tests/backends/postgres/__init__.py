"""Tests of the Postgres backend."""
