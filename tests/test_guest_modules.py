"""guest_exec, guest_file and guest_wait against the lab's null guests; test_guest_modules_vm.py has a real one."""

from __future__ import annotations

import pytest
from labs import running_lab
from steps import Refusal, Steps, Task, run

HARMLESS = r"POST /nodes/pve1/qemu/\d+/agent/(exec|ping)"
FILE = {"vm_id": 300, "path": "/etc/app/app.conf", "content": "one\n", "mode": "0640", "owner": "root"}
MACHINE = Task("machine", {"vm_id": 300, "name": "guests", "source": {"name": "null"}, "state": "started",
                           "net": {"mac": "BC:24:11:00:03:00"}, "ip": "192.168.100.30/24"})  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("state")) as found:
        assert found.tasks_run(MACHINE.play("machine")).rc == 0
        yield found


@pytest.fixture(scope="module")
def play(lab):
    """One run of many tasks; the tests look at one each."""
    tasks = [
        ("said", "guest_exec", {"argv": ["echo", "héllo", "a  b"]}, {}),
        ("read", "guest_exec", {"shell": "cat", "stdin": "in\n", "chdir": "/tmp", "env": {"A": "b"}}, {}),
        ("large", "guest_exec", {"argv": ["echo", "x" * 70000], "large_output": True}, {}),
        ("failed", "guest_exec", {"shell": "echo out; exit 3"}, {"ignore_errors": True}),
        ("slow", "guest_exec", {"argv": ["sleep", "60"], "exec_timeout": 1}, {"ignore_errors": True}),
        ("checked", "guest_exec", {"argv": ["touch", "/tmp/once"]}, {"check_mode": True}),
        ("once_check", "guest_exec", {"argv": ["touch", "/tmp/once"], "creates": "/tmp/once"}, {"check_mode": True}),
        ("once", "guest_exec", {"argv": ["touch", "/tmp/once"], "creates": "/tmp/once"}, {}),
        ("once_again", "guest_exec", {"argv": ["touch", "/tmp/once"], "creates": "/tmp/once"}, {}),
        ("twice", "guest_exec", {"argv": ["rm", "/tmp/once"], "removes": "/tmp/once"}, {}),
        ("twice_again", "guest_exec", {"argv": ["rm", "/tmp/once"], "removes": "/tmp/once"}, {}),
        ("env", "guest_exec", {"argv": ["true"], "env": {"A B": 1}}, {"ignore_errors": True}),
        ("input", "guest_exec", {"argv": ["cat"], "stdin": "x" * 70000}, {"ignore_errors": True}),
        ("neither", "guest_exec", {}, {"ignore_errors": True}),
        ("long", "guest_file", {"path": "/srv/long", "content": "lé\n" * 40000}, {}),
        ("long_again", "guest_file", {"path": "/srv/long", "content": "lé\n" * 40000}, {}),
        ("rights", "guest_file", {"path": "/srv/long", "content": "lé\n" * 40000, "owner": "app:app"}, {}),
        ("rights_again", "guest_file", {"path": "/srv/long", "content": "lé\n" * 40000, "owner": "app:app"}, {}),
        ("kept", "guest_file", {"path": "/srv/long", "content": "short", "group": "app"}, {}),
        ("hidden", "guest_file", {"path": "/srv/secret", "content": "planted-secret"}, {"no_log": True}),
        ("empty", "guest_file", {"path": "/srv/secret", "content": ""}, {"diff": False}),
        ("gone_check", "guest_file", {"path": "/srv/secret", "state": "absent"}, {"check_mode": True}),
        ("gone", "guest_file", {"path": "/srv/secret", "state": "absent"}, {}),
        ("gone_again", "guest_file", {"path": "/srv/secret", "state": "absent"}, {}),
        ("ready", "guest_wait", {"address": "ipv4", "wait_timeout": 5}, {}),
        ("look", "guest_wait", {"cloud_init": True, "port": 8000, "path": "/srv/x"}, {"check_mode": True}),
        ("late", "guest_wait", {"port": 8000, "wait_timeout": 1}, {"ignore_errors": True}),
        ("listener", "guest_file", {"path": "/proc/net/tcp", "content": LISTENER}, {}),
        ("result", "guest_file", {"path": "/run/cloud-init/result.json", "content": '{"v1": {"errors": []}}'}, {}),
        ("all", "guest_wait", {"cloud_init": True, "port": 8000, "path": "/srv/long", "argv": ["true"]}, {}),
        ("errors", "guest_file", {"path": "/run/cloud-init/result.json", "content": '{"v1": {"errors": ["x"]}}'}, {}),
        ("broken", "guest_wait", {"cloud_init": True}, {"ignore_errors": True}),
        ("found", "guest_exec", {"argv": ["echo", "here"], "node": None}, {}),
    ]  # fmt: skip
    book = [Task(module, {"vm_id": 300, **arguments}).play(name, **more) for name, module, arguments, more in tasks]
    ran = lab.tasks_run(*book)
    assert ran.rc == 0, ran.output
    return ran


LISTENER = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    "   0: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
)


def test_guest_file_passes_the_steps(lab):
    steps = Steps(
        "guest_file",
        create=FILE,
        change={**FILE, "content": "two\n", "mode": "0600"},
        drift=Task("guest_exec", {"vm_id": 300, "shell": "echo drifted > /etc/app/app.conf"}),
        info=Task("guest_exec", {"vm_id": 300, "argv": ["stat", "-c", "%a", FILE["path"]]}),
        errors=[
            Refusal({**FILE, "vm_id": 999}, "NotFound", "999"),
            Refusal({**FILE, "mode": "rw"}, "SettingsError", "not octal"),
            Refusal({**FILE, "path": "app.conf"}, "SettingsError", "not the absolute path"),
            Refusal({**FILE, "path": "/etc/app"}, "AgentError", "is a directory"),
            Refusal({"vm_id": 300, "path": "/etc/x"}, None, "content, src"),
            Refusal({"vm_id": 300, "path": "/etc/x", "src": "/nonexistent"}, "SettingsError", "/nonexistent"),
        ],
        harmless=HARMLESS,
    )
    outcome = run(lab, steps)
    assert [line for line in outcome.problems() if not line.startswith("info")] == []
    assert outcome.result("info")["stdout"] == "600\n"
    _attributes, text = outcome.result("change")["diff"]
    assert (text["before"], text["after"]) == ("one\n", "two\n")


def test_output_input_and_text_arrive_as_they_are(play):
    assert play.named["said"]["stdout"] == "héllo a  b\n"
    assert play.named["read"]["stdout"] == "in\n"
    assert play.named["large"]["stdout"] == "x" * 70000 + "\n"


def test_a_program_that_fails_is_a_failure_with_its_output(play):
    failed = play.named["failed"]
    assert (failed["rc"], failed["stdout"]) == (3, "out\n")
    assert "exit code 3" in failed["msg"]


def test_a_program_that_takes_too_long_is_killed(play):
    slow = play.named["slow"]
    assert slow["timed_out"]
    assert (slow["rc"], slow["signal"]) == (None, 9)
    assert "more than 1 s and was killed" in slow["msg"]


def test_the_node_is_found(play):
    assert play.named["found"]["stdout"] == "here\n"


def test_check_mode_runs_nothing_and_says_so(play):
    assert play.named["checked"]["skipped"]
    assert not play.named["checked"]["changed"]
    assert play.named["once_check"]["changed"]
    assert play.named["once"]["changed"]


def test_creates_and_removes_make_it_idempotent(play):
    changes = [play.named[name]["changed"] for name in ("once", "once_again", "twice", "twice_again")]
    assert changes == [True, False, True, False]


def test_bad_options_are_one_clear_line(play):
    assert "'A B' is not the name" in play.named["env"]["msg"]
    assert "70000 bytes is more than the 65536" in play.named["input"]["msg"]
    assert "one of the following is required: argv, shell" in play.named["neither"]["msg"]


def test_a_long_file_comes_in_chunks_and_once(play):
    assert play.named["long"]["changed"]
    assert play.named["long"]["file"]["size"] == 160000
    assert not play.named["long_again"]["changed"]


def test_owner_and_mode_alone_are_a_change_and_stay_with_new_content(play):
    assert play.named["rights"]["diff"]["before"]["owner"] == "root:root"
    assert not play.named["rights_again"]["changed"]
    assert play.named["kept"]["diff"][0]["before"]["group"] == "app"


def test_no_content_is_shown_under_no_log(play, lab):
    assert "planted-secret" not in play.output
    assert "diff" not in play.named["empty"]


def test_a_file_is_removed_once(play):
    assert [play.named[name]["changed"] for name in ("gone_check", "gone", "gone_again")] == [True, True, False]


def test_a_wait_ends_when_all_is_there(play):
    assert play.named["ready"]["guest"]["addresses"] == ["192.168.100.30"]
    assert play.named["all"]["guest"]["ready"]


def test_a_wait_in_check_mode_looks_once(play):
    look = play.named["look"]["guest"]
    assert not look["ready"]
    assert look["missing"] == ["the end of cloud-init", "the path /srv/x", "a listener on port 8000"]


def test_a_wait_is_bounded_and_names_what_is_missing(play):
    assert play.named["late"]["msg"].endswith("has not, after 1 s: a listener on port 8000.")
    assert "has ended with errors: x" in play.named["broken"]["msg"]
