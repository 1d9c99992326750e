"""Telemetry: logs, metrics and traces. A leaf: it knows nothing of the engine."""
