"""The SQLite backend. Opened by `flowfabric.backends.connect` only; the rules are its judge."""
