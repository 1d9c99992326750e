"""The tests of FlowFabric; shared pieces are imported as `tests.<package>`."""
