"""The engine: supervised background tasks that make time pass for a store. Safe with several at once."""
