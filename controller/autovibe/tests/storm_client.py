"""A client process of the race: sends its calls until each is answered 200 or 402, and says each answer's status.

`python -m autovibe.tests.storm_client`: the work as JSON on stdin, one status a line on stdout (0: no answer).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from typing import Any

import httpx


async def send(client: httpx.AsyncClient, work: dict[str, Any], end: float) -> None:
    """Take calls from the work as long as there are any; a gateway that is away is asked again, or another one."""
    while work["bodies"]:
        body, status = work["bodies"].pop(), 0
        while status not in (200, 402) and time.monotonic() < end:
            status = 0
            with contextlib.suppress(httpx.HTTPError):
                url = f"http://127.0.0.1:{random.choice(work['ports'])}/v1/messages"
                status = (await client.post(url, json=body, headers=work["headers"])).status_code
            print(status, flush=True)
            if status not in (200, 402):
                await asyncio.sleep(0.05)


async def main() -> None:
    work = json.load(sys.stdin)
    end = time.monotonic() + work["seconds"]
    async with httpx.AsyncClient(timeout=60) as client:
        await asyncio.gather(*(send(client, work, end) for _ in range(work["at_once"])))


if __name__ == "__main__":
    asyncio.run(main())
