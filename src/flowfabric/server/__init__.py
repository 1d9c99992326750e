"""The server: one generic ASGI application derived from the manifest, and how a process runs it.

It decodes, calls a store and encodes; what an operation means is decided below it.
"""
