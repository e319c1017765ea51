"""The hub's own certificate authority, and the certificate that its API serves with.

Guests trust this CA alone, pinned by the SHA-256 of its DER in their identity. Certificates begin a day early, because
a guest's clock may be behind.
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from autovibe.hubkey import hub_dir, locked, write_secret

CA_DAYS = 365 * 20
SERVER_DAYS = 90
RENEW_DAYS = 30
EARLY = timedelta(days=1)
LOCAL_NAMES = ("192.168.100.2", "127.0.0.1", "localhost")


@dataclass(frozen=True)
class HubCertificates:
    """Where the certificates lie. `server` holds private key and chain in one file, so that they always match."""

    ca: Path
    server: Path
    ca_sha256: str

    @property
    def ca_pem(self) -> bytes:
        return self.ca.read_bytes()


def ensure(state_dir: Path, names: tuple[str, ...] = ()) -> HubCertificates:
    """The hub's certificates in `<state>/hub`, made or renewed where needed.

    `names` are further host names or addresses that the hub is reached at. Safe to call from several processes at once.
    The CA stays for its 20 years: another one would break the pin of every machine that runs.
    """
    folder = hub_dir(state_dir)
    ca_path, server_path = folder / "ca.pem", folder / "server.pem"
    wanted = tuple(dict.fromkeys((*LOCAL_NAMES, *names)))
    with locked(folder):
        ca_key, ca_certificate = _load_or_make_ca(folder / "ca.key", ca_path)
        if not _serves(server_path, ca_certificate, wanted):
            write_secret(server_path, _make_server(ca_key, ca_certificate, wanted))
    return HubCertificates(ca_path, server_path, ca_certificate.fingerprint(hashes.SHA256()).hex())


def ensure_for(settings) -> HubCertificates:
    """The hub's certificates for the addresses that the settings name."""
    host = urlsplit(settings.hub_url_for_guests).hostname
    wanted = (host, str(settings.hub_bind), settings.api_bind, *settings.api_names)
    names = [name for name in wanted if name and name not in ("0.0.0.0", "::")]  # noqa: S104
    return ensure(settings.state_dir, tuple(names))


def _load_or_make_ca(key_path: Path, ca_path: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    if key_path.exists() and ca_path.exists():
        certificate = x509.load_pem_x509_certificate(ca_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        if key.public_key() == certificate.public_key() and not _ends_soon(certificate):
            return key, certificate
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "autovibe hub CA")])
    certificate = (
        _builder(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_secret(key_path, _private_pem(key))
    write_secret(ca_path, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return key, certificate


def _make_server(ca_key: ec.EllipticCurvePrivateKey, ca_certificate: x509.Certificate, names: tuple[str, ...]) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "autovibe hub")])
    certificate = (
        _builder(subject, ca_certificate.subject, key.public_key(), SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    return _private_pem(key) + certificate.public_bytes(encoding) + ca_certificate.public_bytes(encoding)


def _serves(path: Path, ca_certificate: x509.Certificate, names: tuple[str, ...]) -> bool:
    """Whether the certificate on the disk is the CA's, lasts, and carries all the names."""
    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
        certificate.verify_directly_issued_by(ca_certificate)
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except Exception:  # whatever is wrong with it, it is made anew
        return False
    return not _ends_soon(certificate) and {_general_name(name) for name in names} <= set(extension.value)


def _ends_soon(certificate: x509.Certificate) -> bool:
    return certificate.not_valid_after_utc - datetime.now(UTC) < timedelta(days=RENEW_DAYS)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + timedelta(days=days))
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(**used: bool) -> x509.KeyUsage:
    usages = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    usages += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**{usage: used.get(usage, False) for usage in usages})


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
