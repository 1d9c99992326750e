"""How a worker is called when nobody names it: the app and host for people, the process to tell instances apart."""

from __future__ import annotations

import os
import re
import secrets
import socket
from typing import Final

_FOREIGN: Final = re.compile(r"[^A-Za-z0-9._:/@-]+")


def default_worker_id(app_name: str) -> str:
    """Name the logical worker: `app@host`."""
    host = _FOREIGN.sub("-", socket.gethostname()) or "host"
    return f"{_FOREIGN.sub('-', app_name) or 'worker'}@{host}"[:96]


def default_instance(worker_id: str) -> str:
    """Name this very process among all that ever ran."""
    return f"{_FOREIGN.sub('-', worker_id)[:96]}/{os.getpid()}-{secrets.token_hex(4)}"
