"""Role proxmox_host on a real Debian with systemd: it does what check mode says, and locks nobody out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hosts import REPOSITORY, Host, Play, host

PACKAGES = ["chrony", "unattended-upgrades"]
SSH = ("--tags", "proxmox_host_ssh")
DROP_IN = "/etc/ssh/sshd_config.d/10-autovibe.conf"
WANTED: dict[str, Any] = {
    "proxmox_host_packages": PACKAGES,
    # No apt-get update: what is asked for is there.
    "proxmox_host_apt_cache_valid_time": 10**9,
    "proxmox_host_min_free_gib": 1,
    "proxmox_host_ntp_servers": ["ntp.example.net"],
    # A host of these tests may set those of its own network only.
    "proxmox_host_sysctl": {"net.ipv4.conf.all.send_redirects": "0", "net.ipv4.conf.all.log_martians": "1"},
    "proxmox_host_directories": ["/srv/machines"],
}


#: `zpool` and `zfs` that keep names and properties in files, and note what they were told: there is no ZFS here.
ZFS = r"""#!/bin/sh
state=/srv/zfs; mkdir -p $state; tool=$(basename $0); verb=$1; shift
case "$tool $verb" in
"zpool list") [ "$1" = -H ] || { test -e $state/$1; exit; }; ls $state | grep -v '^log$' | grep -v ,; exit 0;;
"zpool get") printf 'NAME PROPERTY VALUE SOURCE
tank version - default
'; exit 0;;
"zpool create") case " $* " in *" -n "*) exit 0;; esac; echo "$tool $verb $*" >>$state/log; : >$state/tank; exit 0;;
"zfs list") for name; do :; done; test -e $state/$(echo $name | tr / ,); exit;;
"zfs create") echo "$tool $verb $*" >>$state/log; for name; do :; done; file=$state/$(echo $name | tr / ,); : >$file
  while [ $# -gt 1 ]; do [ "$1" = -o ] && echo "$2" >>$file; shift; done;;
"zfs get") for name; do :; done; file=$state/$(echo $name | tr / ,)
  case "$*" in *property,source*) sed 's/=.*/	local/' $file;; *) key=$5; sed -n "s/^$key=//p" $file;; esac;;
*) echo "$tool $verb $*" >>$state/log;;
esac
"""


def has_proxmox(h: Host, version: str = "8.4.14") -> None:
    """A package of that name: what the role asks for."""
    control = f"Package: pve-manager\nVersion: {version}\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    h.run(f"mkdir -p /tmp/p/DEBIAN && printf '{control}' >/tmp/p/DEBIAN/control && dpkg-deb -b /tmp/p /tmp/p.deb"
          " && dpkg -i --force-all /tmp/p.deb")  # fmt: skip


def converge(h: Host, *options: str, check: bool = True, **extra: Any) -> Play:
    return h.playbook("playbooks/host.yml", "--limit", "proxmox", *options, check=check, **{**WANTED, **extra})


@pytest.fixture(scope="module")
def pve() -> Iterator[Host]:
    with host(packages=PACKAGES) as h:
        has_proxmox(h)
        # chronyd may not set the machine's clock: -x only watches it.
        h.write("/etc/systemd/system/chrony.service.d/test.conf", "[Unit]\nConditionCapability=\n")
        h.write("/etc/default/chrony", 'DAEMON_OPTS="-F 1 -x"\n')
        h.run("systemctl daemon-reload && systemctl unmask apt-daily.timer apt-daily-upgrade.timer")
        yield h


@pytest.fixture(scope="module")
def made(pve: Host) -> dict[str, Play]:
    before = pve.run("cat /etc/ssh/sshd_config.d/* /etc/sysctl.d/* 2>/dev/null; ls /srv", check=False).stdout
    told = converge(pve, "--check", "--diff")
    assert pve.run("cat /etc/ssh/sshd_config.d/* /etc/sysctl.d/* 2>/dev/null; ls /srv", check=False).stdout == before
    real = converge(pve, "--diff")
    return {"told": told, "real": real, "again": converge(pve), "checked": converge(pve, "--check")}


def test_check_mode_on_a_fresh_host_says_what_is_then_done(made):
    applied = {"Write the drop-in", "Read the time servers"}
    done = [name for name in made["real"].changed_tasks if name.rpartition(" : ")[2] not in applied]
    told = [name for name in made["told"].changed_tasks if name.rpartition(" : ")[2] not in applied]
    assert done
    assert told == done
    assert "+PasswordAuthentication no" in made["told"].output


def test_a_second_run_changes_nothing(made):
    assert made["again"].changed == 0, made["again"].output
    assert made["checked"].changed == 0, made["checked"].output


def test_the_settings_are_in_force(pve, made):
    assert "passwordauthentication no" in pve.run("sshd -T").stdout
    assert pve.run("sysctl -n net.ipv4.conf.all.log_martians").stdout.strip() == "1"
    origins = pve.run("apt-config dump Unattended-Upgrade::Origins-Pattern").stdout
    assert origins.count("origin=") == 1
    assert "Debian-Security" in origins
    assert pve.run("systemctl is-enabled chrony").stdout.strip() == "enabled"
    assert pve.run("systemctl is-active chrony").stdout.strip() == "active"
    assert not pve.run("systemctl list-units --all --plain --no-legend 'autovibe-ssh*'").stdout


def test_a_parameter_that_nobody_asks_for_is_forgotten(pve, made):
    converge(pve, "--tags", "proxmox_host_sysctl", proxmox_host_sysctl={"net.ipv4.conf.all.send_redirects": "0"})
    assert "log_martians" not in pve.read("/etc/sysctl.d/80-autovibe.conf")


def test_settings_that_would_lock_out_are_taken_back(pve, made):
    """Everything is valid, yet nobody may come in: the play ends, and a timer brings the old settings back."""
    before = pve.read(DROP_IN)
    wrong = {"proxmox_host_ssh_settings": {"AllowUsers": "nobody"}, "proxmox_host_ssh_rollback_seconds": 15}
    play = converge(pve, *SSH, check=False, **wrong)
    assert play.recap.get("unreachable") == 1, play.output[-3000:]
    assert "AllowUsers" in pve.read(DROP_IN)
    deadline = time.monotonic() + 60
    while pve.read(DROP_IN) != before:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_run_that_was_killed_before_it_logged_in_anew_is_taken_back_too(pve, made):
    before = pve.read(DROP_IN)
    other = {"proxmox_host_ssh_settings": {"MaxSessions": "7"}, "proxmox_host_ssh_rollback_seconds": 10}
    argv = pve.playbook_command("playbooks/host.yml", "--limit", "proxmox", *SSH, **WANTED, **other)
    run = subprocess.Popen(argv, env=pve.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
                           cwd=REPOSITORY, start_new_session=True)  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while "MaxSessions" not in pve.read(DROP_IN):
            assert time.monotonic() < deadline
            assert run.poll() is None
            time.sleep(0.02)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    deadline = time.monotonic() + 60
    while pve.read(DROP_IN) != before:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert converge(pve, *SSH).changed == 0


def test_it_refuses_to_turn_passwords_off_when_only_the_cluster_has_a_key(pve, made):
    keys = pve.read("/root/.ssh/authorized_keys")
    pve.run("ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519; cp /root/.ssh/id_ed25519.pub /root/.ssh/own")
    shell = f"mv /root/.ssh/authorized_keys /root/.ssh/k; cp /root/.ssh/own /root/.ssh/authorized_keys; rm -f {DROP_IN}"
    # Ansible's own key lets it in by a file that the role does not look at.
    pve.write("/etc/ssh/sshd_config.d/00-test.conf", "AuthorizedKeysFile /root/.ssh/k\n")
    pve.run(f"{shell}; systemctl reload ssh")
    play = converge(pve, *SSH, check=False)
    assert "root has no authorised key but the cluster" in " ".join(play.output.split())
    assert pve.run(f"test -e {DROP_IN}", check=False).returncode != 0
    pve.write("/root/.ssh/authorized_keys", keys, "600")
    pve.run("rm /etc/ssh/sshd_config.d/00-test.conf /root/.ssh/id_ed25519*; systemctl reload ssh")


def test_repositories_are_switched_as_the_user_chose(pve, made):
    enterprise = "/etc/apt/sources.list.d/pve-enterprise.list"
    pve.write(enterprise, "deb https://enterprise.proxmox.com/debian/pve bookworm pve-enterprise\n")
    tags = ("--tags", "proxmox_host_install")
    told = converge(pve, *tags, "--check", "--diff", proxmox_host_repository="no-subscription")
    # From here on apt would ask Proxmox's servers: only the files are looked at.
    assert "+# deb https://enterprise" in told.output
    assert "+Components: pve-no-subscription" in told.output
    missing = converge(pve, *tags, check=False, proxmox_host_repository="enterprise")
    assert "has no active subscription" in " ".join(missing.output.split())
    pve.run(f"rm {enterprise}")


def test_a_pool_takes_only_disks_that_were_given_up_and_is_made_once(pve, made):
    for tool in ("zpool", "zfs"):
        pve.write(f"/usr/local/sbin/{tool}", ZFS, "755")
    disks = ("--tags", "proxmox_host_disks")
    wanted = {
        "proxmox_host_zpools": [{"name": "tank", "vdevs": [{"type": "mirror", "disks": ["/dev/a", "/dev/b"]}]}],
        "proxmox_host_zfs_datasets": [{"name": "tank/machines", "encrypted": True, "properties": {"atime": "off"}}],
        "proxmox_host_erase_disks": ["/dev/a"],
    }
    assert "would take /dev/b with all that" in " ".join(converge(pve, *disks, check=False, **wanted).output.split())
    wanted["proxmox_host_erase_disks"] = ["/dev/a", "/dev/b"]
    told = converge(pve, *disks, "--check", **wanted)
    assert pve.run("test -e /srv/zfs/log", check=False).returncode != 0
    real = converge(pve, *disks, "--diff", **wanted)
    assert told.changed >= 4
    create, dataset = pve.read("/srv/zfs/log").splitlines()
    assert create.endswith("tank mirror /dev/a /dev/b")
    assert "-o ashift=12" in create
    assert "-O compression=lz4" in create
    assert "encryption=aes-256-gcm" in dataset
    assert "keylocation=file:///etc/autovibe/zfs-keys/tank-machines.key" in dataset
    key = pve.read("/etc/autovibe/zfs-keys/tank-machines.key").strip()
    assert len(key) == 64
    assert key not in real.output
    assert pve.run("stat -c %a /etc/autovibe/zfs-keys/tank-machines.key").stdout.strip() == "600"
    assert converge(pve, *disks, **wanted).changed == 0
    pve.run("rm -r /etc/autovibe /etc/systemd/system/autovibe-* /srv/zfs /usr/local/sbin/z*")


def test_a_host_that_is_no_proxmox_or_is_full_is_refused(pve, made):
    full = converge(pve, check=False, proxmox_host_min_free_gib=10**6)
    assert "MiB free on / or /var" in full.output
    has_proxmox(pve, "7.4-3")
    old = converge(pve, check=False)
    assert "has pve-manager 7.4-3" in " ".join(old.output.split())
    has_proxmox(pve)


def test_the_undo_leaves_nothing_of_the_role(pve, made):
    told = converge(pve, "--check", proxmox_host_state="absent")
    gone = converge(pve, proxmox_host_state="absent")
    assert gone.changed_tasks == told.changed_tasks
    assert converge(pve, proxmox_host_state="absent").changed == 0
    left = "find /etc -name '*autovibe*' -not -path '/etc/apt/sources*'"
    assert pve.run(left).stdout == ""
    assert "passwordauthentication yes" in pve.run("sshd -T").stdout


def test_the_tables_in_the_readmes_are_those_of_the_argument_specs():
    done = subprocess.run(
        [sys.executable, "scripts/role-docs", "--check"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
