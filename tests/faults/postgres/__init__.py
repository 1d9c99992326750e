"""Postgres under fire: servers killed, paused, slow and full; connections ended, cut and used up; workers killed."""
