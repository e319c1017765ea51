"""Several storages: configured, filled, and what each type can do."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from autovibe_lab.tests.testing import Client, LabInThread

TYPES = {
    "thin": {"type": "lvmthin", "vgname": "pve", "thinpool": "data"},
    "tank": {"type": "zfspool", "pool": "rpool/data"},
    "share": {"type": "nfs", "server": "10.0.0.9", "export": "/export"},
    "vault": {"type": "pbs", "server": "10.0.0.8", "datastore": "main", "username": "a@pbs", "password": "secret"},
    "fast": {"type": "dir", "path": "/fast"},
}


@pytest.fixture
def storages(client: Client) -> Client:
    for name, options in TYPES.items():
        assert client.api.storage.post(storage=name, **options) == {"storage": name, "type": options["type"]}
    return client


def test_storages_are_configured(storages: Client) -> None:
    api = storages.api
    assert {entry["storage"] for entry in api.storage.get()} == {"local", "null", *TYPES}
    assert [entry["storage"] for entry in api.storage.get(type="pbs")] == ["vault"]
    assert "password" not in api.storage("vault").get()
    api.storage("fast").put(content="images,backup", disable=1)
    status = {entry["storage"]: entry for entry in storages.node.storage.get()}
    assert (status["fast"]["enabled"], status["fast"]["active"]) == (0, 0)
    assert (status["share"]["shared"], status["tank"]["shared"]) == (1, 0)
    assert [entry["storage"] for entry in storages.node.storage.get(content="backup", enabled=1)] == [
        "local",
        "share",
        "vault",
    ]
    refused = storages.refused(api.storage.post, storage="tank", type="dir", path="/x")
    assert "create storage failed: storage ID 'tank' already defined" in str(refused)
    assert "unexpected property 'server'" in str(
        storages.refused(api.storage("tank").put, content="images", server="x")
    )
    api.storage("tank").delete()
    assert "storage 'tank' does not exist" in str(storages.refused(api.storage("tank").get))
    assert "secret" not in (storages.lab.state / "storage.cfg").read_text()


@pytest.mark.parametrize(
    ("storage", "name"), [("tank", "tank:vm-100-disk-0"), ("share", "share:100/vm-100-disk-0.qcow2")]
)
def test_a_guest_on_another_storage(storages: Client, storage: str, name: str) -> None:
    machine = storages.template(100, scsi0=f"{storage}:1", ide2=f"{storage}:cloudinit")
    base = name.replace("vm-", "base-")
    assert machine.config.get()["scsi0"] == f"{base},size=1G"
    clone = storages.clone(100, 101)
    assert clone.config.get()["scsi0"].startswith(f"{base}/")
    storages.ok(clone.status.start.post())
    listed = {entry["volid"]: entry for entry in storages.node.storage(storage).content.get()}
    assert listed[base]["size"] == 1 << 30
    assert listed[clone.config.get()["scsi0"].partition(",")[0]]["parent"]
    assert "still in use" in storages.wait(machine.delete())
    storages.ok(clone.status.stop.post())
    storages.ok(clone.delete())
    storages.ok(machine.delete())
    assert storages.node.storage(storage).content.get() == []


def test_what_a_storage_cannot_do_is_refused(storages: Client) -> None:
    machine = storages.create(100, scsi0="tank:1", ide2="tank:cloudinit")
    for name in ("one", "two"):
        storages.ok(machine.snapshot.post(snapname=name))
    assert storages.wait(machine.snapshot("one").rollback.post()) == (
        "can't rollback, 'one' is not most recent snapshot on 'tank:vm-100-disk-0'"
    )
    storages.ok(machine.snapshot("two").rollback.post())
    assert machine.feature.get(feature="copy", snapname="two")["hasFeature"] == 0
    refused = storages.refused(machine.clone.post, newid=101, full=1, snapname="two")
    assert "Full clone feature is not supported for 'tank:vm-100-disk-0' (scsi0)" in str(refused)
    storages.clone(100, 102, full=1)
    thin = storages.create(103, scsi0="thin:1", ide2="thin:cloudinit")
    storages.ok(thin.snapshot.post(snapname="one"))
    storages.clone(103, 104, full=1, snapname="one")
    refused = storages.refused(storages.node.qemu.post, vmid=105, scsi0="vault:1")
    assert "storage 'vault' does not support vm images" in str(refused)


def test_a_directory_holds_real_disks(storages: Client) -> None:
    volid = storages.node.storage("fast").content.post(vmid=100, filename="vm-100-disk-0.qcow2", size="64M")
    assert volid == "fast:100/vm-100-disk-0.qcow2"
    assert storages.node.storage("fast").content(volid).get()["size"] == 64 << 20
    refused = storages.refused(
        storages.node.storage("fast").content.post, vmid=100, filename="vm-100-disk-0.qcow2", size=1
    )
    assert "already exists" in str(refused)
    storages.ok(storages.node.storage("fast").content(volid).delete())


@pytest.fixture
def source(tmp_path: Path) -> Iterator[tuple[str, bytes]]:
    """A file that a web server on loopback gives away: its URL, its content."""
    content = b"image" * 1000
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "image.raw").write_bytes(content)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/image.raw", content
    server.shutdown()
    server.server_close()


def test_a_download_is_verified(client: Client, source: tuple[str, bytes]) -> None:
    url, content = source
    download = client.node.storage("local")("download-url")
    given = {"content": "import", "filename": "image.raw", "url": url, "checksum-algorithm": "sha256"}
    assert "checksum mismatch" in client.wait(download.post(**given, checksum="0" * 64))
    assert client.node.storage("local").content.get(content="import") == []
    client.ok(download.post(**given, checksum=hashlib.sha256(content).hexdigest()))
    assert (client.lab.state / "import" / "image.raw").read_bytes() == content
    client.ok(download.post(**given, checksum=hashlib.sha256(content).hexdigest()))
    assert "ERROR 404" in client.wait(download.post(content="iso", filename="x.iso", url=url + "x"))
    client.ok(client.node.qemu.post(vmid=100, scsi0="null:0,import-from=local:import/image.raw"))


def test_an_upload_becomes_an_iso(client: Client, lab: LabInThread) -> None:
    user, _, secret = "autovibe@pve!autovibe", "", lab.lab.secrets.token_secret
    url, certificate = f"{lab.url}/api2/json/nodes/pve1/storage/local/upload", str(lab.state / "ca.pem")
    headers = {"Authorization": f"PVEAPIToken={user}={secret}"}

    def upload(name: str) -> requests.Response:
        files = {"filename": (name, b"iso" * 1000)}
        return requests.post(url, data={"content": "iso"}, files=files, headers=headers, verify=certificate, timeout=30)

    client.ok(upload("my tiny.iso").json()["data"])
    assert [entry["volid"] for entry in client.node.storage("local").content.get()] == ["local:iso/my_tiny.iso"]
    assert upload("tiny.txt").json()["errors"] == {"filename": "wrong file extension"}
