"""Tests of the Valkey client, against real servers and real sockets."""
