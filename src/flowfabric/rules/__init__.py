"""The rules: pure decisions about what an operation does, given the loaded records and the store's time.

No async, clock, randomness, logging or I/O. The SQLite backend runs them directly; other backends are held to them.
"""
