"""Servers of stores, started beside a process."""
