"""A process that claims until there is nothing: `python -m tests.backends.postgres.claimer <url> <worker>`.

It says `ready`, begins when it is told to, and prints one line for each lease: execution id and priority.
"""

from __future__ import annotations

import asyncio
import sys

from tests.backends.postgres.work import opened
from tests.backends.working import claim


async def main(url: str, worker: str) -> None:
    """Claim with several callers at once."""
    async with opened(url) as (backend,):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

        async def drain(most: int) -> None:
            while leases := await claim(backend, worker, max_tasks=most):
                for lease in leases:
                    print(lease.execution_id, lease.priority)

        await asyncio.gather(*(drain(1 + number % 2) for number in range(6)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
