"""A client that costs little: the same HTTP request again and again on some connections, from JSON on standard input.

Prints {"statuses", "seconds", "milliseconds"}: how often each status came, and how long each call took, in their order.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import urlparse


async def client(spec: dict[str, Any], request: bytes, end: float, statuses: Counter[int], took: list[float]) -> None:
    url = urlparse(spec["url"])
    context = ssl.create_default_context(cafile=spec.get("ca")) if url.scheme == "https" else None
    reader, writer = await asyncio.open_connection(url.hostname, url.port, ssl=context)
    while time.perf_counter() < end:
        began = time.perf_counter()
        writer.write(request)
        status = await answer(reader)
        statuses[status] += 1
        if status == 200:
            took.append((time.perf_counter() - began) * 1000)
    writer.close()


async def answer(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end; returns its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if b"content-length" in headers:
        await reader.readexactly(int(headers[b"content-length"]))
    else:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    return int(head.split(b" ", 2)[1])


async def main() -> None:
    spec = json.load(sys.stdin)
    body = json.dumps(spec["body"]).encode()
    headers = {"host": "bench", "content-type": "application/json", "content-length": len(body), **spec["headers"]}
    lines = [f"POST {urlparse(spec['url']).path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    request = "\r\n".join([*lines, "", ""]).encode() + body
    statuses: Counter[int] = Counter()
    took: list[float] = []
    began = time.perf_counter()
    end = began + spec["seconds"]
    await asyncio.gather(*(client(spec, request, end, statuses, took) for _ in range(spec["clients"])))
    print(json.dumps({"statuses": statuses, "seconds": time.perf_counter() - began, "milliseconds": sorted(took)}))


if __name__ == "__main__":
    asyncio.run(main())
