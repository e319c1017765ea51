"""guest_exec, guest_file and guest_wait with a real guest: one boot, one run of ansible-playbook."""

from __future__ import annotations

import pytest
from labs import Lab
from steps import Task

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

#: Three chunks and a bit, with every byte that there is.
BINARY = bytes(range(256)) * 560
DAEMON = "import socket,time; s=socket.socket(); s.bind(('127.0.0.1',8123)); s.listen(); time.sleep(600)"
LEFT = (
    "for one in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $one; echo; done 2> /dev/null | grep -c '^sleep 7777' || true"
)
TASKS = [
    ("unicode", "guest_exec", {"argv": ["printf", "%s|", "héllo ☃", 'a "b" $c']}, {}),
    (
        "shell",
        "guest_exec",
        {"shell": 'cat; pwd; echo "$NAME"', "stdin": "ï\n", "chdir": "/tmp", "env": {"NAME": "ünï x"}},
        {},
    ),  # fmt: skip
    ("failed", "guest_exec", {"shell": "echo out; echo err >&2; exit 3"}, {"ignore_errors": True}),
    ("signal", "guest_exec", {"shell": "kill -TERM $$"}, {"ignore_errors": True}),
    ("missing", "guest_exec", {"argv": ["/no/such/program"]}, {"ignore_errors": True}),
    (
        "slow",
        "guest_exec",
        {"shell": "echo begun; sleep 7777 & sleep 7777", "exec_timeout": 2},
        {"ignore_errors": True},
    ),  # fmt: skip
    ("left", "guest_exec", {"shell": LEFT}, {}),
    ("large", "guest_exec", {"argv": ["python3", "-c", "print('x' * 5000000, end='')"], "large_output": True}, {}),
    ("once_check", "guest_exec", {"argv": ["touch", "/tmp/once"], "creates": "/tmp/once"}, {"check_mode": True}),
    ("once", "guest_exec", {"argv": ["touch", "/tmp/once"], "creates": "/tmp/once"}, {}),
    ("once_again", "guest_exec", {"argv": ["touch", "/tmp/once"], "creates": "/tmp/once"}, {}),
    ("put_check", "guest_file", {"path": "/srv/a b/é", "src": "{{ binary }}", "mode": "0640"}, {"check_mode": True}),
    ("put", "guest_file", {"path": "/srv/a b/é", "src": "{{ binary }}", "mode": "0640"}, {}),
    ("put_again", "guest_file", {"path": "/srv/a b/é", "src": "{{ binary }}", "mode": "0640"}, {}),
    ("same", "guest_exec", {"shell": "sha256sum '/srv/a b/é'; stat -c %a '/srv/a b/é'; ls -A '/srv/a b'"}, {}),
    ("owner", "guest_file", {"path": "/srv/a b/é", "src": "{{ binary }}", "owner": "1000", "group": "1000"}, {}),
    ("owner_again", "guest_file", {"path": "/srv/a b/é", "src": "{{ binary }}", "owner": "agent"}, {}),
    ("text", "guest_file", {"path": "/srv/a b/é", "content": "späte\n"}, {}),
    ("kept", "guest_exec", {"argv": ["stat", "-c", "%a %U", "/srv/a b/é"]}, {}),
    ("empty", "guest_file", {"path": "/srv/empty", "content": ""}, {}),
    ("empty_again", "guest_file", {"path": "/srv/empty", "content": ""}, {}),
    ("folder", "guest_file", {"path": "/srv", "content": ""}, {"ignore_errors": True}),
    ("gone", "guest_file", {"path": "/srv/empty", "state": "absent"}, {}),
    ("gone_again", "guest_file", {"path": "/srv/empty", "state": "absent"}, {}),
    ("daemon", "guest_exec", {"shell": f'(sleep 1; exec python3 -c "{DAEMON}") > /dev/null 2>&1 &'}, {}),
    ("listens", "guest_wait", {"port": 8123, "path": "/srv", "argv": ["true"], "wait_timeout": 120}, {}),
    ("address", "guest_wait", {"address": "ipv4", "wait_timeout": 120}, {}),
    ("late", "guest_wait", {"path": "/no/such", "wait_timeout": 1}, {"ignore_errors": True}),
]


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    state = tmp_path_factory.mktemp("state")
    (state / "binary").write_bytes(BINARY)
    lab = Lab(state)
    lab.command("up", "--port", str(lab.port), "--site", "full")
    try:
        template = Task("template", {"name": "real", "disk_source": "local:import/autovibe-guest.qcow2",
                                     "storage": "local"})  # fmt: skip
        machine = Task("machine", {"vm_id": 300, "name": "real-1", "source": {"name": "real"}, "state": "started",
                                   "memory": 768, "ip": "192.168.100.30/24"})  # fmt: skip
        ready = Task("guest_wait", {"vm_id": 300, "wait_timeout": 400})
        tasks = [template.play("template"), machine.play("machine"), ready.play("ready")]
        tasks += [Task(module, {"vm_id": 300, **given}).play(name, **more) for name, module, given, more in TASKS]
        tasks += [Task("machine", {"vm_id": 300, "state": "absent", "force": True}).play("absent")]
        ran = lab.tasks_run(*tasks, vars={"binary": str(state / "binary")})
        assert ran.rc == 0, ran.output[-4000:]
        yield ran.named
    finally:
        lab.command("down")


def changes(named, *names):
    return [named[name]["changed"] for name in names]


def test_arguments_and_text_arrive_unchanged(named):
    assert named["unicode"]["stdout"] == 'héllo ☃|a "b" $c|'
    assert named["shell"]["stdout"] == "ï\n/tmp\nünï x\n"


def test_how_a_program_ended_is_told(named):
    failed = named["failed"]
    assert (failed["rc"], failed["stdout"], failed["stderr"]) == (3, "out\n", "err\n")
    assert (named["signal"]["rc"], named["signal"]["signal"]) == (None, 15)
    assert "no such program" in named["missing"]["msg"]


def test_a_slow_program_is_killed_with_its_children_and_its_output_kept(named):
    assert named["slow"]["timed_out"]
    assert named["slow"]["stdout"] == "begun\n"
    assert named["left"]["stdout"].strip() == "0"


def test_five_megabytes_of_output_arrive(named):
    assert named["large"]["stdout"] == "x" * 5_000_000
    assert not named["large"]["truncated"]


def test_files_are_put_once_byte_by_byte(named):
    import hashlib

    assert changes(named, "once_check", "once", "once_again") == [True, True, False]
    assert changes(named, "put_check", "put", "put_again") == [True, True, False]
    assert named["put_check"]["diff"] == named["put"]["diff"]
    digest, mode, listing = named["same"]["stdout"].splitlines()
    assert digest.split()[0] == hashlib.sha256(BINARY).hexdigest()
    assert (mode, listing) == ("640", "é")


def test_owner_and_mode_stay_with_new_content(named):
    assert changes(named, "owner", "owner_again", "text") == [True, False, True]
    assert named["kept"]["stdout"] == "640 agent\n"
    assert changes(named, "empty", "empty_again", "gone", "gone_again") == [True, False, True, False]
    assert "is a directory" in named["folder"]["msg"]


def test_waits_end_when_all_is_there_and_are_bounded(named):
    assert named["listens"]["guest"]["ready"]
    assert named["address"]["guest"]["addresses"] == ["192.168.100.30"]
    assert "the path /no/such" in named["late"]["msg"]
