"""Role proxmox_host on a real Debian with systemd: it does what check mode says, and locks nobody out."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
import yaml
from hosts import REPOSITORY, Host, Play, host

PACKAGES = ["chrony", "unattended-upgrades"]
SSH = ("--tags", "proxmox_host_ssh")
DROP_IN = "/etc/ssh/sshd_config.d/10-autovibe.conf"
UNIT = "/etc/systemd/system/autovibe-zfs-load-key.service"
OTHER = {"proxmox_host_ssh_settings": {"MaxSessions": "7"}}
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
"zfs list") for name; do :; done; test -e $state/$(echo $name | tr / ,) && echo $name; exit;;
"zfs create") echo "$tool $verb $*" >>$state/log; for name; do :; done; file=$state/$(echo $name | tr / ,); : >$file
  while [ $# -gt 1 ]; do [ "$1" = -o ] && echo "$2" >>$file; shift; done;;
"zfs get") for name; do :; done; file=$state/$(echo $name | tr / ,)
  case "$*" in *property,source*) sed 's/=.*/	local/' $file;; *) key=$5; sed -n "s/^$key=//p" $file;; esac;;
*) echo "$tool $verb $*" >>$state/log;;
esac
"""


#: As on any host, but for a chronyd that may not set the machine's clock: -x only watches it.
CHRONY = r"""
mkdir -p /etc/systemd/system/chrony.service.d
printf '[Unit]\nConditionCapability=\n' >/etc/systemd/system/chrony.service.d/test.conf
echo 'DAEMON_OPTS="-F 1 -x"' >/etc/default/chrony
systemctl unmask apt-daily.timer apt-daily-upgrade.timer
"""


def package(h: Host, name: str, version: str, more: str = "Section: x") -> None:
    """A package that has a name only."""
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x\n{more}\nDescription: x\n"
    h.write("/tmp/p/DEBIAN/control", control)
    h.run("dpkg-deb -b /tmp/p /tmp/p.deb && dpkg -i --force-all /tmp/p.deb")


def has_proxmox(h: Host, version: str = "8.4.14") -> None:
    """What the role asks for."""
    package(h, "pve-manager", version)


def converge(h: Host, *options: str, check: bool = True, **extra: Any) -> Play:
    return h.playbook("playbooks/host.yml", "--limit", "proxmox", *options, check=check, **{**WANTED, **extra})


@pytest.fixture(scope="module")
def pve() -> Iterator[Host]:
    """As Proxmox VE's installer leaves it, but for the packages that the role installs."""
    with host(mirror=True) as h:
        has_proxmox(h)
        h.run(CHRONY + "apt-get -q update")
        yield h


def kill_when(h: Host, condition: Callable[[], bool], *options: str, **extra: Any) -> None:
    """Begin a run, and SIGKILL it with all its workers as soon as the condition holds."""
    argv = h.playbook_command("playbooks/host.yml", "--limit", "proxmox", *options, **{**WANTED, **extra})
    run = subprocess.Popen(argv, env=h.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
                           cwd=REPOSITORY, start_new_session=True)  # fmt: skip
    try:
        wait_for(lambda: run.poll() is not None or condition(), 240)
        assert run.poll() is None
    finally:
        victims = [*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)]
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        run.wait()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def armed(h: Host) -> str:
    """What is left of the way back."""
    units = h.run("systemctl list-units --all --plain --no-legend 'autovibe-ssh*'").stdout
    return units + h.run("find /etc/systemd /etc/ssh -name '*rollback*' -o -name '*.before'").stdout


@pytest.fixture(scope="module")
def made(pve: Host) -> dict[str, Play]:
    before = pve.run("cat /etc/ssh/sshd_config.d/* /etc/sysctl.d/* 2>/dev/null; ls /srv", check=False).stdout
    told = converge(pve, "--check", "--diff")
    assert pve.run("cat /etc/ssh/sshd_config.d/* /etc/sysctl.d/* 2>/dev/null; ls /srv", check=False).stdout == before
    real = converge(pve, "--diff")
    return {"told": told, "real": real, "again": converge(pve), "checked": converge(pve, "--check")}


def test_check_mode_on_a_fresh_host_says_what_is_then_done(made):
    assert len(made["told"].changed_tasks) > 5
    assert made["told"].changed_tasks == made["real"].changed_tasks
    for play in (made["told"], made["real"]):
        for line in ("+PasswordAuthentication no", "+server ntp.example.net iburst", "unattended-upgrades"):
            assert line in play.output


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
    assert armed(pve) == ""


def test_a_handler_that_never_ran_runs_next_time(pve, made):
    """As after a kill between the file and the end of the play."""
    pve.run("touch /etc/chrony/sources.d/x && rm /etc/chrony/sources.d/x")
    late = converge(pve, "--tags", "proxmox_host_time")
    assert [name.split(" : ")[-1] for name in late.changed_tasks] == [
        "Look whether chronyd has read its servers",
        "Read the time servers",
    ]
    assert converge(pve, "--tags", "proxmox_host_time").changed == 0


def test_a_parameter_that_nobody_asks_for_is_forgotten(pve, made):
    converge(pve, "--tags", "proxmox_host_sysctl", proxmox_host_sysctl={"net.ipv4.conf.all.send_redirects": "0"})
    assert "log_martians" not in pve.read("/etc/sysctl.d/80-autovibe.conf")


#: Of Proxmox VE's own files in /usr/lib/sysctl.d: containers run out of inotify instances with less, VMs of traffic.
OF_PROXMOX_VE = (
    "fs.inotify.", "kernel.keys.", "kernel.unprivileged_userns_clone", "net.bridge.", "net.ipv4.conf.all.rp_filter",
    "net.ipv4.igmp_link_local_mcast_reports", "net.ipv4.neigh.", "net.ipv6.neigh.", "vm.max_map_count",
)  # fmt: skip


def test_no_parameter_is_taken_from_proxmox_ve() -> None:
    """80-autovibe.conf is read after Proxmox VE's files."""
    defaults = yaml.safe_load((REPOSITORY / "roles/proxmox_host/defaults/main.yml").read_text())
    assert [name for name in defaults["proxmox_host_sysctl"] if name.startswith(OF_PROXMOX_VE)] == []


def test_settings_that_would_lock_out_are_taken_back(pve, made):
    """Everything is valid, yet nobody may come in: the play ends, and a timer brings the old settings back."""
    before = pve.read(DROP_IN)
    wrong = {"proxmox_host_ssh_settings": {"AllowUsers": "nobody"}, "proxmox_host_ssh_rollback_seconds": 6}
    play = converge(pve, *SSH, check=False, **wrong)
    assert play.recap.get("unreachable") == 1, play.output[-3000:]
    wait_for(lambda: pve.read(DROP_IN) == before and armed(pve) == "", 120)


def test_settings_that_nobody_has_confirmed_do_not_outlive_a_restart(pve, made):
    before = pve.read(DROP_IN)
    kill_when(pve, lambda: "MaxSessions" in pve.read(DROP_IN), *SSH, **OTHER)
    pve.reboot()
    assert pve.read(DROP_IN) == before
    assert armed(pve) == ""
    assert "passwordauthentication no" in pve.run("sshd -T").stdout


def test_settings_that_sshd_does_not_take_are_never_written(pve, made):
    before = pve.read(DROP_IN)
    wrong = {"AuthenticationMethods": "keyboard-interactive"}  # which is turned off
    play = converge(pve, *SSH, "--check", check=False, proxmox_host_ssh_settings=wrong)
    assert "refuses the settings" in " ".join(play.output.split())
    assert pve.read(DROP_IN) == before
    assert armed(pve) == ""


def test_it_refuses_to_turn_passwords_off_when_only_the_cluster_has_a_key(pve, made):
    keys = pve.read("/root/.ssh/authorized_keys")
    pve.run("ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519; cp /root/.ssh/id_ed25519.pub /root/.ssh/own")
    pve.run(f"cd /root/.ssh && mv authorized_keys k && cp own authorized_keys && rm -f {DROP_IN}")
    pve.run("echo 'command=\"rsync --server\"' $(cat /root/.ssh/k) >>/root/.ssh/authorized_keys")
    # Ansible's own key lets it in by something that the role does not look at.
    command = "AuthorizedKeysCommand /bin/cat /root/.ssh/k\nAuthorizedKeysCommandUser root\n"
    pve.write("/etc/ssh/sshd_config.d/00-test.conf", command)
    pve.run("systemctl reload ssh")
    play = converge(pve, *SSH, check=False)
    assert "root has no authorised key but the cluster" in " ".join(play.output.split())
    assert pve.run(f"test -e {DROP_IN}", check=False).returncode != 0
    pve.write("/root/.ssh/authorized_keys", keys, "600")
    pve.run("rm /etc/ssh/sshd_config.d/00-test.conf /root/.ssh/id_ed25519* /root/.ssh/own; systemctl reload ssh")


def test_packages_are_installed_only_if_none_has_to_go(pve, made):
    package(pve, "clock", "1", "Conflicts: ntpsec")
    play = converge(pve, "--tags", "proxmox_host_packages", check=False, proxmox_host_packages=["ntpsec"])
    assert "apt would remove packages for ntpsec" in " ".join(play.output.split())
    assert "installed" in pve.run("dpkg-query -W -f '${db:Status-Status}' clock").stdout


def test_repositories_are_switched_as_the_user_chose(pve, made):
    """As Proxmox VE 8 and 9 name them. Nothing but the files: from here on apt would ask Proxmox's servers."""
    folder, tags = "/etc/apt/sources.list.d", ("--tags", "proxmox_host_repositories")
    pve.write(
        f"{folder}/pve-enterprise.list", "deb https://enterprise.proxmox.com/debian/pve bookworm pve-enterprise\n"
    )
    stanza = "Types: deb\nURIs: {}\nSuites: trixie\nComponents: main\nSigned-By: /usr/share/keyrings/x.gpg\n"
    pve.write(f"{folder}/ceph.sources", stanza.format("https://enterprise.proxmox.com/debian/ceph-squid"))
    unread = converge(pve, *tags, check=False)
    assert "uses Proxmox's enterprise repository and has no active subscription" in " ".join(unread.output.split())
    missing = converge(pve, *tags, check=False, proxmox_host_repository="enterprise")
    assert "would use Proxmox's enterprise" in " ".join(missing.output.split())
    told = converge(pve, *tags, "--check", "--diff", proxmox_host_repository="no-subscription")
    real = converge(pve, *tags, "--diff", proxmox_host_repository="no-subscription")
    assert told.changed_tasks == real.changed_tasks
    assert real.changed == 3
    assert "+# deb https://enterprise" in told.output
    assert "+Enabled: no" in told.output
    sites = pve.run("apt-get --print-uris update").stdout
    assert "enterprise" not in sites
    assert "download.proxmox.com" in sites
    # Whoever has it in a file of his own keeps that one only.
    pve.run(f"cd {folder} && mv autovibe-pve-no-subscription.sources mine.sources")
    assert converge(pve, *tags, proxmox_host_repository="no-subscription").changed == 0
    pve.run(f"rm {folder}/*")


@pytest.fixture
def zfs(pve: Host) -> Iterator[None]:
    for tool in ("vgs", "lvs", "pvs", "vgcreate"):
        pve.write(f"/usr/local/sbin/{tool}", "#!/bin/sh\n", "755")
    for tool in ("zpool", "zfs"):
        pve.write(f"/usr/local/sbin/{tool}", ZFS, "755")
    yield
    # The undo would leave it, as it leaves the keys.
    pve.run(f"systemctl disable {UNIT.rpartition('/')[2]}; rm -rf /etc/autovibe {UNIT} /srv/zfs /usr/local/sbin/*")


def test_a_pool_takes_only_disks_that_were_given_up_and_is_made_once(pve, zfs):
    disks = ("--tags", "proxmox_host_disks")
    wanted = {
        "proxmox_host_zpools": [{"name": "tank", "vdevs": [{"type": "mirror", "disks": ["/dev/a", "/dev/b"]}]}],
        "proxmox_host_zfs_datasets": [{"name": "tank/machines", "encrypted": True, "properties": {"atime": "off"}}],
        "proxmox_host_erase_disks": ["/dev/a"],
    }
    assert "would take /dev/b with all that" in " ".join(converge(pve, *disks, check=False, **wanted).output.split())
    wanted["proxmox_host_erase_disks"] = ["/dev/a", "/dev/b"]
    thin = {"vg": "machines", "thinpool": "data", "size": "90%VG", "disks": ["/dev/null"]}
    groups = {"proxmox_host_lvm_thinpools": [thin], "proxmox_host_erase_disks": ["/dev/a", "/dev/b", "/dev/null"]}
    told = converge(pve, *disks, "--check", **{**wanted, **groups})
    assert "thin pool machines/data, 90%VG" in told.output
    assert pve.run("test -e /srv/zfs/log", check=False).returncode != 0
    real = converge(pve, *disks, "--diff", **wanted)
    assert told.changed >= 4
    assert "ExecStart=/bin/sh -c '[ \"$(zfs get -H -o value keystatus tank/machines)" in pve.read(UNIT)
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


def test_the_key_of_a_dataset_is_kept_and_brought_back_and_never_replaced(pve, zfs, tmp_path):
    def disks(*options: str, check: bool = True) -> Play:
        wanted = {
            "proxmox_host_zpools": [{"name": "tank", "vdevs": [{"type": "stripe", "disks": ["/dev/a"]}]}],
            "proxmox_host_zfs_datasets": [{"name": "tank/machines", "encrypted": True}],
            "proxmox_host_erase_disks": ["/dev/a"],
            "proxmox_host_zfs_key_copy_dir": str(tmp_path),
        }
        return converge(pve, "--tags", "proxmox_host_disks", *options, check=check, **wanted)

    key, copy = "/etc/autovibe/zfs-keys/tank-machines.key", tmp_path / "pve1-tank-machines.key"
    told = disks("--check")
    assert {"Make a key", "Write the copy"} <= {name.split(" : ")[-1] for name in told.changed_tasks}
    assert not copy.exists()
    disks()
    first = pve.read(key)
    assert copy.read_text() == first
    assert copy.stat().st_mode & 0o777 == 0o600
    # A system disk that was made anew: the dataset is on other disks.
    pve.run(f"rm {key}")
    assert first.strip() not in disks("--diff").output
    assert (pve.read(key), pve.run(f"stat -c %a {key}").stdout) == (first, "600\n")
    assert disks().changed == 0
    copy.write_text("another\n")
    assert "is another key than" in " ".join(disks(check=False).output.split())
    copy.unlink()
    pve.run(f"rm {key}")
    assert "would not open it" in " ".join(disks(check=False).output.split())
    assert pve.run(f"test -e {key}", check=False).returncode != 0


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
    assert pve.run("find /etc -name '*autovibe*'").stdout == ""
    assert "passwordauthentication yes" in pve.run("sshd -T").stdout


def test_a_run_that_was_killed_at_its_most_delicate_is_gone_on_with(pve, made):
    """New SSH settings are written, and Ansible is not in again yet. The next run does not wait for the way back."""
    kill_when(pve, lambda: pve.run(f"test -e {DROP_IN}", check=False).returncode == 0)
    converge(pve)
    assert armed(pve) == ""
    assert "passwordauthentication no" in pve.run("sshd -T").stdout


def test_the_tables_in_the_readmes_are_those_of_the_argument_specs():
    done = subprocess.run(
        [sys.executable, "scripts/role-docs", "--check"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
