"""How long requests took is kept, unless that would harm them."""

import anyio
import pytest
from autovibe.api import metrics
from prometheus_client import generate_latest


async def app(scope, receive, send):
    scope["route"] = Route()
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


class Route:
    path = "/measured/{one}"


@pytest.mark.parametrize("has_room", [True, False])
def test_requests_are_answered_with_and_without_room_for_their_figures(tmp_path, monkeypatch, has_room):
    folder = tmp_path if has_room else tmp_path / "gone"
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    before, said = counted(), []
    measured = metrics.Measured(app)

    async def send(message):
        said.append(message["type"])

    anyio.run(measured, {"type": "http", "method": "GET"}, None, send)
    assert said == ["http.response.start", "http.response.body"]
    assert counted() - before == (1 if has_room else 0)
    assert [path.stat().st_blocks * 512 >= metrics.FILE_BYTES for path in tmp_path.iterdir()] == [True] * has_room


def counted():
    text = generate_latest(metrics.guests).decode().splitlines()
    name = 'autovibe_guest_duration_seconds_count{method="GET",route="/measured/{one}",status="204"}'
    return sum(float(line.rsplit(" ", 1)[1]) for line in text if line.startswith(name))
