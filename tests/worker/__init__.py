"""Tests of the worker SDK, on real stores, servers and processes."""
