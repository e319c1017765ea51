"""A guest whose clock is wrong, as after a restore: its agent sets it by the hub, and by nobody else."""

import ssl
import threading
import time
from datetime import timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from autovibe import ca
from autovibe_agent.hub import Hub, HubUnreachable

DAY = 24 * 3600


@pytest.fixture
def clock(monkeypatch):
    """What the clock was set to; it is not this computer's that is set."""
    found = []
    monkeypatch.setattr(time, "clock_settime", lambda _, seconds: found.append(seconds))
    return found


@pytest.fixture
def hub_at(tmp_path, monkeypatch):
    """A hub for which it is so many seconds later, and whose certificates begin at a day from here; its CA and URL."""
    servers = []

    def serve(seconds, begins):
        class Answers(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def date_time_string(self, timestamp=None):
                return formatdate(time.time() + seconds, usegmt=True)

            def log_message(self, *_):
                pass

        monkeypatch.setattr(ca, "EARLY", timedelta(days=-begins))
        certificates = ca.ensure(tmp_path / f"hub-{len(servers)}")
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return certificates.ca, f"https://127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("seconds", "is_set"), [(0, False), (30, False), (600, True), (-600, True)])
def test_it_is_set_when_it_is_minutes_off(hub_at, clock, seconds, is_set):
    trusted, url = hub_at(seconds, -1)
    assert Hub(url, trusted, set_clock=True).call("GET", "/x") == {}
    assert [abs(one - time.time() - seconds) < 30 for one in clock] == [True] * is_set


def test_a_certificate_that_is_not_good_yet_has_the_time_learned_first(hub_at, clock):
    trusted, url = hub_at(3 * DAY, 2)
    with pytest.raises(HubUnreachable, match="clock was wrong"):
        Hub(url, trusted, set_clock=True).call("GET", "/x")
    assert [abs(one - time.time() - 3 * DAY) < 30 for one in clock] == [True]


def test_a_hub_that_is_not_trusted_sets_no_clock(hub_at, clock):
    trusted, _ = hub_at(0, 2)
    _, url = hub_at(3 * DAY, 2)
    with pytest.raises(HubUnreachable):
        Hub(url, trusted, set_clock=True).call("GET", "/x")
    assert clock == []


def test_outside_of_a_machine_no_clock_is_set(hub_at, clock):
    trusted, url = hub_at(600, -1)
    assert Hub(url, trusted).call("GET", "/x") == {}
    assert clock == []
