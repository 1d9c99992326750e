"""The version of FlowFabric, in a module of its own so that every layer can name it."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
