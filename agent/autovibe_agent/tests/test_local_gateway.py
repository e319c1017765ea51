"""The gateway on the guest's loopback, before a hub that a test plays."""

import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from autovibe_agent.local_gateway import LocalGateway


class FarHub:
    """Answers each call with `answer` and notes what came. `connection` is what the agent's Hub has."""

    def __init__(self):
        self.token, self.seen, self.answer, self.cut = "token-1", [], (200, b'{"ok": true}'), False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.seen.append((self.command, self.path, dict(self.headers), body))
                status, content = hub.answer
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("X-Secret-Of-The-Hub", "s")
                self.send_header("Content-Length", str(len(content) + 100 * hub.cut))
                self.end_headers()
                self.wfile.write(content)
                self.close_connection = hub.cut

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self.handler, self.port, self.server = Handler, 0, None
        self.up()

    def up(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def down(self):
        self.server.shutdown()
        self.server.server_close()

    def connection(self, timeout):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)


@pytest.fixture
def hub():
    one = FarHub()
    yield one
    one.down()


@pytest.fixture
def open_gateway(hub):
    opened = []

    def make(**options):
        opened.append(LocalGateway(hub, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def call(gateway, path="/v1/chat/completions", body=b'{"model": "m"}', key=None, method="POST", **headers):
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=30)
    headers = {"Authorization": f"Bearer {gateway.key if key is None else key}", **headers}
    connection.request(method, path, body=body, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


def test_a_call_goes_on_with_the_token_of_the_moment(hub, open_gateway):
    gateway = open_gateway()
    status, content, headers = call(gateway, **{"Cookie": "c", "User-Agent": "cli/1"})
    assert (status, json.loads(content)) == (200, {"ok": True})
    assert "X-Secret-Of-The-Hub" not in headers
    hub.token = "token-2"
    call(gateway)
    seen = [headers["Authorization"] for _, _, headers, _ in hub.seen]
    assert seen == ["Bearer token-1", "Bearer token-2"]
    assert not {"Cookie", "cookie"} & set(hub.seen[0][2])
    assert hub.seen[0][2]["user-agent"] == "cli/1"
    assert hub.seen[0][3] == b'{"model": "m"}'
    assert gateway.key not in str(hub.seen)


def test_nobody_else_gets_through(hub, open_gateway):
    gateway = open_gateway()
    for key in ("", "x", hub.token, "\xff"):
        assert call(gateway, key=key)[0] == 401
    for path in ("/", "/agent/v1/assignment", "/v2/x", "http://10.0.0.1/v1/x", "/../agent/v1/heartbeat"):
        assert call(gateway, path=path)[0] == 404
    assert hub.seen == []
    assert gateway.last_status is None


def test_what_has_no_length_or_too_much_of_it_is_refused(hub, open_gateway):
    gateway = open_gateway()
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=30)
    for length in ("-1", "x", str(1 << 40)):
        connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=30)
        connection.putrequest("POST", "/v1/messages")
        connection.putheader("Authorization", f"Bearer {gateway.key}")
        connection.putheader("Content-Length", length)
        connection.endheaders()
        assert connection.getresponse().status == 413
    assert hub.seen == []


def test_answers_are_counted_and_end_at_the_limit(hub, open_gateway):
    gateway = open_gateway(max_answers=2)
    call(gateway, method="GET", path="/v1/models", body=None)
    hub.answer = (529, b"{}")
    assert call(gateway)[0] == 529
    hub.answer = (200, b"{}")
    assert [call(gateway)[0] for _ in range(3)] == [200, 200, 403]
    assert (gateway.answers, gateway.last_status, gateway.is_exhausted) == (2, 200, True)


def test_a_hub_that_is_away_is_waited_for(hub, open_gateway):
    gateway = open_gateway()
    hub.down()
    got = []
    asking = threading.Thread(target=lambda: got.append(call(gateway)[0]))
    asking.start()
    hub.up()
    asking.join(60)
    assert got == [200]
    assert len(hub.seen) == 1


def test_a_hub_that_stays_away_is_said_to(hub, open_gateway):
    gateway = open_gateway(patience=0.1)
    hub.down()
    try:
        assert call(gateway)[0] == 503
    finally:
        hub.up()


def test_an_answer_that_was_cut_is_not_made_whole(hub, open_gateway):
    gateway = open_gateway()
    hub.cut = True
    with pytest.raises(http.client.HTTPException):
        call(gateway)
    # It may have been paid: it is not sent again.
    assert len(hub.seen) == 1
