"""isolation against the lab: the twelve steps, what a drift costs, and that nothing is lost on the way."""

from __future__ import annotations

import pytest
from labs import running_lab
from steps import Call, Refusal, Steps, Task, run

VM = "/nodes/pve1/qemu/300"
MACHINE = Task("machine", {"vm_id": 300, "name": "walled", "source": {"name": "null"},
                           "net": {"mac": "BC:24:11:00:03:00", "bridge": "vmbr1"}})  # fmt: skip
SSH = {"action": "ACCEPT", "macro": "SSH", "source": "192.168.100.0/24", "comment": "from here"}
HUB = {"type": "out", "action": "ACCEPT", "proto": "tcp", "dest": "hub", "dport": "8000"}
PING = {"action": "ACCEPT", "proto": "icmp", "icmp_type": "echo-request", "source": "+friends"}
GROUP = {"name": "web", "rules": [{"action": "ACCEPT", "macro": "Web"}, {"action": "DROP", "log": "info"}]}
WALL = {
    "vm_id": 300,
    "options": {"enable": True, "policy_in": "DROP", "policy_out": "REJECT", "ipfilter": True, "log_level_in": "info"},
    "aliases": [{"name": "hub", "cidr": "192.168.100.2", "comment": "the hub"}],
    "ipsets": [
        {"name": "ipfilter-net0", "entries": [{"cidr": "192.168.100.17/32"}]},
        {
            "name": "friends",
            "comment": "f",
            "entries": [{"cidr": "10.1.0.0/16"}, {"cidr": "10.1.2.3", "nomatch": True}],
        },
    ],
    "groups": [GROUP],
    "rules": [SSH, PING, {"type": "group", "action": "web"}, HUB],
}
CHANGED = {
    **WALL,
    "options": {"enable": True, "policy_in": "DROP", "macfilter": False},
    "aliases": [{"name": "hub", "cidr": "192.168.100.3"}, {"name": "other", "cidr": "10.0.0.0/8"}],
    "ipsets": [{"name": "friends", "entries": [{"cidr": "10.1.0.0/16", "comment": "net"}, {"cidr": "fd00::1"}]}],
    "groups": [{**GROUP, "comment": "for the web", "rules": [GROUP["rules"][1]]}],
    "rules": [HUB, {**SSH, "enable": False}, {"action": "DROP", "source": "other"}],
}
STEPS = Steps(
    "isolation",
    create=WALL,
    change=CHANGED,
    delete={**CHANGED, "state": "absent"},
    drift=Call("PUT", f"{VM}/firewall/rules/1", {"enable": 1}),
    info=Task("machine_info", {"vm_id": 300}),
    errors=[
        Refusal({**WALL, "vm_id": 999}, "NotFound", "VM 999 does not exist"),
        Refusal({"vm_id": 300, "aliases": [{"name": "A", "cidr": "::1"}, {"name": "a", "cidr": "::1"}]},
                "NotPossible", "a is named twice"),
        Refusal({"vm_id": 300, "rules": [{"type": "sideways", "action": "DROP"}]}, None, "must be one of"),
        Refusal({"vm_id": 300, "identity": {"machine": "x"}, "rules": []}, "IdentityError", "VM 300"),
        Refusal({**WALL, "rules": [SSH, {"action": "ACCEPT", "dport": "80"}]}, "NotPossible", r"rules\[1\]: ports"),
        Refusal({**WALL, "groups": [{"name": "web", "rules": [{"action": "web"}]}]}, "NotPossible",
                r"groups.web\[0\]: 'web' is no action"),
        Refusal({**WALL, "aliases": [{"name": "hub", "cidr": "hub.example"}]}, "NotPossible", "neither an address nor"),
        Refusal({**WALL, "ipsets": [{"name": "a b"}]}, "NotPossible", "ipsets: 'a b' is no name"),
        Refusal({}, None, "one of the following is required"),
    ],
)  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("state")) as found:
        assert found.tasks_run(MACHINE.play("machine")).rc == 0
        yield found


def test_isolation_passes_the_twelve_steps(lab):
    outcome = run(lab, STEPS)
    assert outcome.problems() == []
    found = outcome.result("create")["isolation"]
    assert [rule["action"] for rule in found["rules"]] == ["ACCEPT", "ACCEPT", "web", "ACCEPT"]
    assert found["enforced"] is False
    assert any("firewall=1" in line for line in outcome.result("create")["warnings"])


#: What somebody does by hand, and the one call that sets it right.
DRIFTS = {
    "an_option": (Call("PUT", f"{VM}/firewall/options", {"policy_in": "ACCEPT"}), "PUT /firewall/options"),
    "an_option_more": (Call("PUT", f"{VM}/firewall/options", {"radv": 1}), "PUT /firewall/options"),
    "rule_edited": (Call("PUT", f"{VM}/firewall/rules/3", {"dport": "1:65535"}), "PUT /firewall/rules/3"),
    "a_rule_added": (Call("POST", f"{VM}/firewall/rules", {"type": "in", "action": "ACCEPT", "enable": 1}),
                     "DELETE /firewall/rules/0"),
    "a_rule_moved": (Call("PUT", f"{VM}/firewall/rules/3", {"moveto": 0}), "PUT /firewall/rules/0"),
    "the_first_rule_gone": (Call("DELETE", f"{VM}/firewall/rules/0"), "POST /firewall/rules"),
    "an_alias": (Call("PUT", f"{VM}/firewall/aliases/hub", {"cidr": "10.9.9.9", "comment": "the hub"}),
                 "PUT /firewall/aliases/hub"),
    "an_alias_more": (Call("POST", f"{VM}/firewall/aliases", {"name": "spy", "cidr": "10.9.9.9"}),
                      "DELETE /firewall/aliases/spy"),
    "an_entry_more": (Call("POST", f"{VM}/firewall/ipset/friends", {"cidr": "0.0.0.0/1"}),
                      "DELETE /firewall/ipset/friends/0.0.0.0/1"),
    "an_entry_edited": (Call("PUT", f"{VM}/firewall/ipset/friends/10.1.2.3", {"nomatch": 0}),
                        "PUT /firewall/ipset/friends/10.1.2.3"),
    "a_set_more": (Call("POST", f"{VM}/firewall/ipset", {"name": "spies"}), "DELETE /firewall/ipset/spies"),
    "a_groups_rule": (Call("PUT", "/cluster/firewall/groups/web/0", {"macro": "SSH"}),
                       "PUT /cluster/firewall/groups/web/0"),
}  # fmt: skip


def test_each_drift_is_set_right_by_one_call(lab):
    wall = Task("isolation", WALL)
    tasks = [wall.play("wall")]
    for name, (call, _write) in DRIFTS.items():
        tasks += [call.task(lab).play(f"{name}_drifts"), wall.play(name), wall.play(f"{name}_again")]
    ran = lab.tasks_run(*tasks)
    assert ran.rc == 0, ran.output[-3000:]
    calls = [call for call in lab.aid("GET", "calls") if call["method"] != "GET"]
    made = {}
    for name in DRIFTS:
        began, ended = ran.spans[name]
        made[name] = [f"{c['method']} {c['path'].removeprefix(VM)}" for c in calls if began <= c["at"] <= ended]
        assert not ran.named[f"{name}_again"]["changed"]
    assert made == {name: [write] for name, (_call, write) in DRIFTS.items()}


def test_what_is_not_given_is_not_touched(lab):
    tasks = [
        Task("isolation", WALL).play("wall"),
        Task("isolation", {"vm_id": 300, "options": {"enable": False}}).play("only"),
        Task("isolation", {"machine_name": "walled", "rules": WALL["rules"]}).play("rules"),
    ]
    named = lab.tasks_run(*tasks).named
    assert named["only"]["changed"]
    assert not named["rules"]["changed"]


@pytest.mark.parametrize("action", ["drop_before", "drop_after"])
def test_it_goes_on_when_calls_fail(lab, action):
    """Every third write fails once, executed or not; the run, or the next one, ends in the state that is wanted."""
    wall, none = Task("isolation", WALL), Task("isolation", {"vm_id": 300, "state": "absent", "groups": [GROUP]})
    assert lab.tasks_run(none.play("cleared")).rc == 0
    for skip in (0, 3, 6, 9, 12):
        lab.aid("POST", "faults", method="POST|PUT", path=".*firewall.*", count=1, skip=skip, action=action,
                status=500, reason="Interrupted")  # fmt: skip
    ran = lab.tasks_run(wall.play("first", ignore_errors=True), *[wall.play(f"again{n}", ignore_errors=True)
                        for n in range(5)], wall.play("last"))  # fmt: skip
    assert ran.rc == 0, ran.output[-2000:]
    assert not ran.named["last"]["changed"]
    assert lab.tasks_run(none.play("cleared")).rc == 0


def test_a_rule_that_is_refused_does_not_cut_the_vm_off(lab):
    """Only Proxmox VE knows its macros. With the policy in force and no rule, nobody would reach a VM that was open."""
    none, wall = Task("isolation", {"vm_id": 300, "state": "absent"}), {**WALL, "rules": [{**SSH, "macro": "Nope"}]}
    closer = {**wall, "options": {**WALL["options"], "policy_in": "REJECT"}}
    ran = lab.tasks_run(
        none.play("cleared"),
        Task("isolation", wall).play("refused", ignore_errors=True),
        Call("GET", f"{VM}/firewall/options").task(lab).play("options"),
        Task("isolation", WALL).play("well"),
        # One that is on is closed before anything else.
        Task("isolation", closer).play("on", ignore_errors=True),
        Call("GET", f"{VM}/firewall/options").task(lab).play("closed"),
    )
    assert "unknown macro" in ran.named["refused"]["msg"]
    assert "enable" not in ran.named["options"]["json"]["data"]
    assert "unknown macro" in ran.named["on"]["msg"]
    assert ran.named["closed"]["json"]["data"]["policy_in"] == "REJECT"
