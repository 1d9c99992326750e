"""Benchmarks: `make bench`. Figures are measured, never asserted; each scenario runs in processes of its own."""
