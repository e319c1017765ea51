"""The hub's CA: what guests trust."""

import os
import socket
import ssl
import stat
import threading
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from autovibe import ca
from cryptography import x509


def certificate(path):
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


def test_it_is_made_once_and_kept(tmp_path):
    first, second = ca.ensure(tmp_path), ca.ensure(tmp_path)
    assert first == second
    assert certificate(first.server) == certificate(second.server)


def test_secrets_are_for_their_owner_only(tmp_path):
    made = ca.ensure(tmp_path)
    assert stat.S_IMODE(made.server.stat().st_mode) == 0o600
    assert stat.S_IMODE((made.ca.parent / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(made.ca.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(made.ca.stat().st_mode) == 0o644


def test_processes_that_start_at_once_agree(tmp_path):
    with ProcessPoolExecutor(4) as pool:
        made = list(pool.map(ca.ensure, [tmp_path] * 8))
    assert len({one.ca_sha256 for one in made}) == 1
    assert certificate(made[0].ca).extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_certificates_begin_a_day_early(tmp_path):
    made = ca.ensure(tmp_path)
    for path in (made.ca, made.server):
        assert certificate(path).not_valid_before_utc < datetime.now(UTC) - timedelta(hours=23)


def test_the_server_certificate_is_renewed_before_it_ends(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ca, "SERVER_DAYS", ca.RENEW_DAYS - 1)
        old = ca.ensure(tmp_path)
        old_end = certificate(old.server).not_valid_after_utc
    new = ca.ensure(tmp_path)
    assert certificate(new.server).not_valid_after_utc > old_end
    assert new.ca_sha256 == old.ca_sha256


def test_another_name_makes_another_server_certificate_of_the_same_ca(tmp_path):
    first = ca.ensure(tmp_path)
    second = ca.ensure(tmp_path, ("hub.example.org",))
    names = certificate(second.server).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "hub.example.org"]
    assert first.ca_sha256 == second.ca_sha256


def test_a_broken_server_certificate_is_replaced(tmp_path):
    made = ca.ensure(tmp_path)
    made.server.write_bytes(b"half a file")
    assert certificate(ca.ensure(tmp_path).server)


def handshake(server_file, ca_file, name, strict):
    """A TLS handshake on a socket pair; raises what the client sees."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(server_file)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.load_verify_locations(ca_file)
    if strict:
        client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve():
        try:
            server_context.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client_context.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["192.168.100.2", "127.0.0.1", "localhost"])
def test_clients_verify_it(tmp_path, name, strict):
    made = ca.ensure(tmp_path)
    handshake(made.server, made.ca, name, strict)


def test_another_hubs_ca_does_not_verify_it(tmp_path):
    ours, others = ca.ensure(tmp_path / "a"), ca.ensure(tmp_path / "b")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(ours.server, others.ca, "127.0.0.1", False)


def test_the_fingerprint_is_that_of_the_der(tmp_path):
    import hashlib

    made = ca.ensure(tmp_path)
    assert made.ca_sha256 == hashlib.sha256(ssl.PEM_cert_to_DER_cert(made.ca.read_text())).hexdigest()
    assert os.listdir(made.ca.parent).count("ca.pem") == 1
