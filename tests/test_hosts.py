"""The test hosts themselves."""

import os
from pathlib import Path

from hosts import host


def test_a_host_boots_takes_a_play_reboots_and_leaves_nothing(tmp_path: Path) -> None:
    play = tmp_path / "play.yml"
    play.write_text(
        "- hosts: proxmox\n"
        "  gather_facts: false\n"
        "  tasks:\n"
        "    - name: Leave word\n"
        "      ansible.builtin.copy: {content: '{{ word }}', dest: /etc/word, mode: '644'}\n"
    )
    with host() as h:
        assert h.run("systemctl is-system-running", check=False).stdout == "running\n"
        assert h.playbook(play, "--check", word="hello").changed_tasks == ["Leave word"]
        assert h.playbook(play, word="hello").changed == 1
        assert h.playbook(play, word="hello").changed == 0
        boot = h.read("/proc/sys/kernel/random/boot_id"), h.pid
        h.reboot()
        assert h.pid != boot[1]
        assert h.read("/etc/word") == "hello"
        assert h.run("ip -br link").stdout.split()[0] == "lo"
        pid, folder = h.pid, h.inventory.parent
    assert not os.path.exists(f"/proc/{pid}")
    assert not folder.exists()
