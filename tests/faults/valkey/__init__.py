"""Valkey under fire: servers killed, failed over, paused, emptied of functions and hints, full; workers killed.

`load` keeps a store busy and remembers everything that was acknowledged, `judging` holds the store to it, `scenes` has
the servers and the processes. The tests say what happens to them meanwhile.
"""
