"""Servers of stores, started beside this process and gone with it: for development, demonstrations and tests.

`valkey.ValkeyServer` is one, `postgres.PostgresServer` another. Production runs its servers itself. What must stay
true: nothing started here outlives the process that started it, however that ends; everything listens on loopback
alone.
"""
