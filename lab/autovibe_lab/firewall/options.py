"""The firewall's options: which there are for the cluster, a node and a guest, and what they may say."""

from __future__ import annotations

import re

from autovibe_lab.firewall.rules import LOG
from autovibe_lab.schema import BOOLEAN, NATURAL, UNKNOWN, Param, opt

POLICY = Param(enum=("ACCEPT", "REJECT", "DROP"))
UNIT = r"(second|minute|hour|day)"
KNOWN = {"enable": r"[01]", "burst": r"\d+", "rate": rf"[1-9][0-9]*/{UNIT}"}


def _ratelimit(text: str) -> None:
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key, value = (key, value) if equals else ("enable", key)
        if key not in KNOWN:
            raise ValueError(f"format error\nlog_ratelimit.{key}: {UNKNOWN}")
        if not re.fullmatch(KNOWN[key], value):
            raise ValueError(f"format error\nlog_ratelimit.{key}: value does not match the regex pattern")


def _all(**params: Param) -> dict[str, Param]:
    return {name: opt(param) for name, param in params.items()}


OPTIONS = {
    "cluster": _all(
        enable=NATURAL,
        ebtables=BOOLEAN,
        log_ratelimit=Param(check=_ratelimit),
        policy_in=POLICY,
        policy_out=POLICY,
        policy_forward=Param(enum=("ACCEPT", "DROP")),
    ),
    "host": _all(
        **dict.fromkeys(
            ("enable", "log_nf_conntrack", "ndp", "nf_conntrack_allow_invalid", "nftables", "nosmurfs"), BOOLEAN
        ),
        **dict.fromkeys(("protection_synflood", "tcpflags"), BOOLEAN),
        **dict.fromkeys(("log_level_in", "log_level_out", "log_level_forward"), LOG),
        **dict.fromkeys(("smurf_log_level", "tcp_flags_log_level"), LOG),
        **dict.fromkeys(("protection_synflood_burst", "protection_synflood_rate"), Param("integer")),
        nf_conntrack_helpers=Param(),
        nf_conntrack_max=Param("integer", minimum=32768),
        nf_conntrack_tcp_timeout_established=Param("integer", minimum=7875),
        nf_conntrack_tcp_timeout_syn_recv=Param("integer", minimum=30, maximum=60),
    ),
    "vm": _all(
        **dict.fromkeys(("enable", "dhcp", "ipfilter", "macfilter", "ndp", "radv"), BOOLEAN),
        **dict.fromkeys(("log_level_in", "log_level_out"), LOG),
        **dict.fromkeys(("policy_in", "policy_out"), POLICY),
    ),
}
