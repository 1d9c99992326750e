"""Tests of the Valkey backend."""
