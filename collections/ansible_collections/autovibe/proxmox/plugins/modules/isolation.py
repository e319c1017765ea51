#!/usr/bin/python
# Copyright (c) The autovibe authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: isolation
short_description: A VM's firewall, as one desired state
version_added: 0.2.0
author: The autovibe authors (@autovibe)
description:
  - Brings the Proxmox VE firewall of a VM to what is given, with as few calls as there can be, and keeps the order
    of its rules.
  - O(options), O(aliases), O(ipsets) and O(rules) are each the whole; what is there besides is removed. One that is not
    given is left as it is.
  - The firewall filters only where it is switched on for the datacenter and for the NIC, too (option C(firewall) of
    O(autovibe.proxmox.machine#module:net)). There is a warning when it is not.
options:
  state:
    description:
      - With V(absent) all options, rules, aliases and IP sets of the VM are removed, and the security groups that
        O(groups) names.
    type: str
    choices: [present, absent]
    default: present
  vm_id:
    description: VM id.
    type: int
  machine_name:
    description: Name of the machine, when its VM id is not given.
    type: str
  options:
    description: The firewall's options. One that is not given is removed, and Proxmox VE's default holds.
    type: dict
    suboptions:
      enable:
        description: Whether the firewall of this VM is on.
        type: bool
      policy_in:
        description: What happens to incoming traffic that no rule fits.
        type: str
        choices: [ACCEPT, REJECT, DROP]
      policy_out:
        description: What happens to outgoing traffic that no rule fits.
        type: str
        choices: [ACCEPT, REJECT, DROP]
      dhcp:
        description: Whether DHCP is let through.
        type: bool
      ndp:
        description: Whether IPv6 neighbour discovery is let through.
        type: bool
      radv:
        description: Whether the VM may send router advertisements.
        type: bool
      macfilter:
        description: Whether only packets from the NIC's own MAC address may leave.
        type: bool
      ipfilter:
        description: Whether only packets from the addresses in the IP set C(ipfilter-net0) may leave net0, and so on.
        type: bool
      log_level_in:
        description: Log level for incoming traffic.
        type: str
        choices: [emerg, alert, crit, err, warning, notice, info, debug, nolog]
      log_level_out:
        description: Log level for outgoing traffic.
        type: str
        choices: [emerg, alert, crit, err, warning, notice, info, debug, nolog]
  aliases:
    description: The VM's aliases.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name, in lower case.
        type: str
        required: true
      cidr:
        description: Address or network.
        type: str
        required: true
      comment:
        description: Comment. If not given, that of an alias that is there stays.
        type: str
  ipsets:
    description: The VM's IP sets.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name, in lower case.
        type: str
        required: true
      comment:
        description: Comment. If not given, that of a set that is there stays.
        type: str
      entries:
        description: All entries of the set.
        type: list
        elements: dict
        suboptions:
          cidr:
            description: Address, network, or alias.
            type: str
            required: true
          nomatch:
            description: Whether the set does not match this one, though it matches a network around it.
            type: bool
            default: false
          comment:
            description: Comment.
            type: str
  groups:
    description:
      - Security groups of the datacenter, each with all of its rules. Other groups are not touched.
      - Needs the privilege C(Sys.Modify) on C(/).
    type: list
    elements: dict
    suboptions:
      name:
        description: Name, in lower case.
        type: str
        required: true
      comment:
        description: Comment. If not given, that of a group that is there stays.
        type: str
      rules:
        description: All rules of the group, in their order.
        type: list
        elements: dict
        suboptions:
          type:
            description: Direction of the traffic; V(group) for the rules of a security group.
            type: str
            choices: [in, out, group]
            default: in
          action:
            description: V(ACCEPT), V(REJECT) or V(DROP), or the name of the security group.
            type: str
            required: true
          enable:
            description: Whether the rule is in force.
            type: bool
            default: true
          macro:
            description: One of Proxmox VE's macros, such as V(SSH).
            type: str
          proto:
            description: Protocol, by name or number.
            type: str
          source:
            description: Address, network, list of them, alias, or V(+name) of an IP set.
            type: str
          dest:
            description: As O(groups[].rules[].source), for the destination.
            type: str
          sport:
            description: Source ports, such as V(80,443) or V(8000:8010). Needs O(groups[].rules[].proto).
            type: str
          dport:
            description: Destination ports. Needs O(groups[].rules[].proto).
            type: str
          icmp_type:
            description: Type of ICMP message, when O(groups[].rules[].proto) is V(icmp) or V(icmpv6).
            type: str
          iface:
            description: Only this NIC, such as V(net0).
            type: str
          log:
            description: Log level of the rule.
            type: str
            choices: [emerg, alert, crit, err, warning, notice, info, debug, nolog]
          comment:
            description: Comment.
            type: str
  rules:
    description: The VM's rules, in their order.
    type: list
    elements: dict
    suboptions:
      type:
        description: Direction of the traffic; V(group) for the rules of a security group.
        type: str
        choices: [in, out, group]
        default: in
      action:
        description: V(ACCEPT), V(REJECT) or V(DROP), or the name of the security group.
        type: str
        required: true
      enable:
        description: Whether the rule is in force.
        type: bool
        default: true
      macro:
        description: One of Proxmox VE's macros, such as V(SSH).
        type: str
      proto:
        description: Protocol, by name or number.
        type: str
      source:
        description: Address, network, list of them, alias, or V(+name) of an IP set.
        type: str
      dest:
        description: As O(rules[].source), for the destination.
        type: str
      sport:
        description: Source ports, such as V(80,443) or V(8000:8010). Needs O(rules[].proto).
        type: str
      dport:
        description: Destination ports. Needs O(rules[].proto).
        type: str
      icmp_type:
        description: Type of ICMP message, when O(rules[].proto) is V(icmp) or V(icmpv6).
        type: str
      iface:
        description: Only this NIC, such as V(net0).
        type: str
      log:
        description: Log level of the rule.
        type: str
        choices: [emerg, alert, crit, err, warning, notice, info, debug, nolog]
      comment:
        description: Comment.
        type: str
extends_documentation_fragment:
  - autovibe.proxmox.connection
  - autovibe.proxmox.connection.identity
  - autovibe.proxmox.connection.diff
seealso:
  - module: autovibe.proxmox.machine
"""

EXAMPLES = r"""
- name: A machine that is reached by ssh, and reaches nothing but its hub
  autovibe.proxmox.isolation:
    vm_id: 101
    options:
      enable: true
      policy_in: DROP
      policy_out: DROP
      ipfilter: true
    aliases:
      - name: hub
        cidr: 192.168.100.2
    ipsets:
      - name: ipfilter-net0
        entries:
          - cidr: 192.168.100.17
    rules:
      - action: ACCEPT
        macro: SSH
        source: 192.168.100.0/24
      - type: out
        action: ACCEPT
        proto: tcp
        dest: hub
        dport: "8000"

- name: The same rules for many machines, as a security group
  autovibe.proxmox.isolation:
    vm_id: 101
    groups:
      - name: web
        rules:
          - action: ACCEPT
            macro: Web
    rules:
      - type: group
        action: web

- name: No firewall
  autovibe.proxmox.isolation:
    vm_id: 101
    state: absent
"""

RETURN = r"""
isolation:
  description: The VM's firewall as it is now, or would be. Of what was given, in Proxmox VE's own words.
  returned: success
  type: dict
  contains:
    vm_id:
      description: VM id.
      type: int
      sample: 101
    node:
      description: Name of the node.
      type: str
      sample: pve1
    enforced:
      description:
        - Whether the firewall really filters, in the datacenter and on all of the VM's NICs.
        - Null when these credentials cannot tell (C(Sys.Audit) on C(/)), or when O(options) is not given.
      type: bool
    options:
      description: The options that are set.
      returned: when O(options) is given
      type: dict
    aliases:
      description: The aliases, by name.
      returned: when O(aliases) is given
      type: dict
    ipsets:
      description: The IP sets with their entries, by name.
      returned: when O(ipsets) is given
      type: dict
    groups:
      description: The security groups with their rules, by name.
      returned: when O(groups) is given
      type: dict
    rules:
      description: The rules, in their order.
      returned: when O(rules) is given
      type: list
      elements: dict
error_class:
  description: What kind of error it was, such as V(NotFound) or V(ApiError).
  returned: failure
  type: str
task_log:
  description: The last lines of the failed Proxmox VE task's log; empty when no task failed.
  returned: failure
  type: list
  elements: str
"""
