"""Templates that a playbook has made are the controller's as well."""

from __future__ import annotations

import json
import subprocess

from sites import BINARIES, ROOT, Site


def made_by_a_playbook(site: Site, **extra: str) -> None:
    variables = {
        "template_name": "autovibe-guest",
        "template_storage": "null",
        "template_disk_source": "null:1",
        **extra,
    }
    done = subprocess.run(
        [BINARIES / "ansible-playbook", "playbooks/templates.yml", "-e", json.dumps(variables)],
        cwd=ROOT, env=site.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def ready(site: Site) -> list[tuple[str, int, str]]:
    listed = [row for row in site.json("template", "list") if row["status"] == "ready"]
    return [(row["name"], row["vm_id"], row["inputs"]) for row in listed]


def test_a_spawn_finds_what_a_playbook_has_made(null_site: Site) -> None:
    site = null_site
    site.autovibe("project", "create", "demo", "--budget", "5")
    spawn = ("machine", "spawn", "demo", "--command", "true", "--no-wait")
    missing = site.run(*spawn)
    assert missing.returncode == 1
    assert "Proxmox VE has no template autovibe-guest that the token can see" in missing.stderr
    assert missing.stderr.count("\n") == 1

    made_by_a_playbook(site)
    machine = site.json(*spawn)
    ((_, vm_id, inputs),) = ready(site)
    assert len(inputs) == 16, "the version that the playbook has given it"
    site.autovibe("machine", "terminate", machine["name"])

    # Another version is taken in by name; what is known already is not asked for again.
    made_by_a_playbook(site, template_memory="256")
    assert ready(site) == [("autovibe-guest", vm_id, inputs)]
    taken = site.json("template", "import")
    assert taken["vm_id"] != vm_id
    assert ready(site) == [("autovibe-guest", taken["vm_id"], taken["inputs"])]


def test_one_that_is_not_there_is_a_line(null_site: Site) -> None:
    failed = null_site.run("template", "import", "nope")
    assert failed.returncode == 1
    assert "has no template nope" in failed.stderr
    assert "Traceback" not in failed.stderr
