"""The guest agent's channel against a qemu-ga that is late, silent or gone.

The real one runs inside a guest (test_qemu_life); this stand-in speaks its protocol and misbehaves when asked to.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from autovibe_lab.agent_channel import AgentChannel
from autovibe_lab.guest import AgentError


class LateAgent:
    """Answers in order; `hold` keeps all answers back, as a busy guest does. One client at a time, like QEMU's port;
    what the guest has to say is said to whoever is connected then."""

    def __init__(self) -> None:
        self.hold = asyncio.Event()
        self.hold.set()
        self.seen: list[str] = []
        self.client: asyncio.StreamWriter | None = None
        self.open_requests = self.most_open_requests = 0

    async def serve(self, path: Path) -> asyncio.Server:
        return await asyncio.start_unix_server(self._client, str(path))

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.client = writer
        while line := await reader.readline():
            request = json.loads(line.lstrip(b"\xff"))
            self.seen.append(request["execute"])
            self.open_requests += 1
            self.most_open_requests = max(self.most_open_requests, self.open_requests)
            await self.hold.wait()
            self.open_requests -= 1
            answer, delimiter = {"return": {}}, b""
            if request["execute"] == "guest-sync-delimited":
                answer, delimiter = {"return": request["arguments"]["id"]}, b"\xff"
            elif request["execute"] == "guest-nonsense":
                answer = {
                    "error": {"class": "CommandNotFound", "desc": "The command guest-nonsense has not been found"}
                }
            elif request["execute"] == "guest-info":
                answer = {"return": {"version": "late"}}
            self.client.write(delimiter + json.dumps(answer).encode() + b"\n")
        writer.close()


async def with_agent(tmp_path: Path, body: object) -> None:
    agent = LateAgent()
    server = await agent.serve(tmp_path / "qga")
    channel = AgentChannel(tmp_path / "qga")
    try:
        await body(agent, channel)
    finally:
        channel.close()
        server.close()


def test_a_late_answer_is_not_taken_for_the_next_ones(tmp_path: Path) -> None:
    async def body(agent: LateAgent, channel: AgentChannel) -> None:
        assert await channel.call("guest-ping") == {}
        agent.hold.clear()
        with pytest.raises(AgentError, match="got timeout.*guest-info within 0.1 s"):
            await channel.call("guest-info", timeout=0.1)
        agent.hold.set()
        assert await channel.call("guest-ping") == {}
        assert agent.seen == ["guest-sync-delimited", "guest-ping", "guest-info", "guest-sync-delimited", "guest-ping"]

    asyncio.run(with_agent(tmp_path, body))


def test_requests_take_turns(tmp_path: Path) -> None:
    async def body(agent: LateAgent, channel: AgentChannel) -> None:
        answers = await asyncio.gather(*(channel.call(f"guest-{name}") for name in ["info", "ping"] * 10))
        assert answers == [{"version": "late"}, {}] * 10
        assert agent.most_open_requests == 1

    asyncio.run(with_agent(tmp_path, body))


def test_an_error_is_the_agents_own_and_a_missing_agent_is_said(tmp_path: Path) -> None:
    async def body(agent: LateAgent, channel: AgentChannel) -> None:
        with pytest.raises(AgentError, match="guest-nonsense has not been found"):
            await channel.call("guest-nonsense")
        assert await channel.call("guest-ping") == {}
        with pytest.raises(AgentError, match="not running"):
            await AgentChannel(tmp_path / "nobody").call("guest-ping")

    asyncio.run(with_agent(tmp_path, body))
