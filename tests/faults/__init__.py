"""Processes killed without warning."""
