# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which privilege a refused call needs, in Proxmox VE 8's names and 9's where they differ: data and one function."""

from __future__ import annotations

import re

#: Calls whose 403 names no privilege ("Permission check failed"), or whose name for it is another one in version 9:
#: method, end of the path, privileges in 8, privileges in 9.
NEEDS = (
    ("POST", r"/clone", "VM.Clone on the source and VM.Allocate on the pool (give a pool)", None),
    ("POST", r"/download-url", "Datastore.AllocateTemplate on the storage and Sys.AccessNetwork on the node", None),
    ("POST", r"/qemu", "VM.Allocate on /vms/ID, or on the pool (give a pool)", None),
    ("*", r"/agent/(exec|exec-status)", "VM.Monitor", "VM.GuestAgent.Unrestricted"),
    ("*", r"/agent/file-read", "VM.Monitor", "VM.GuestAgent.FileRead"),
    ("*", r"/agent/file-write", "VM.Monitor", "VM.GuestAgent.FileWrite"),
    ("*", r"/agent/fs(freeze|trim).*", "VM.Monitor", "VM.GuestAgent.FileSystemMgmt"),
    ("*", r"/agent/.*", "VM.Monitor", "VM.GuestAgent.Audit"),
    ("POST", r"/monitor", "VM.Monitor", "Sys.Audit"),
)
NAMED = re.compile(r"\((?P<path>/[^,()]*), (?P<privileges>[\w.|, ]+)\)")


def advice(method: str, path: str, reason: str) -> str:
    """What to do about a 403; empty when there is nothing to say."""
    missing_pool = re.search(r"pool '([^']*)' does not exist", reason)
    if missing_pool:
        return f"create the pool '{missing_pool[1]}', or name another one"
    named = NAMED.search(reason)
    where = f" on {named['path']}" if named else ""
    for verb, end, eight, nine in NEEDS:
        if verb in (method, "*") and re.search(f"{end}$", path) and (nine or not named):
            wanted = f"{eight}{where}" if nine is None else f"{eight}{where} ({nine} from Proxmox VE 9 on)"
            return f"the user, and its token when that has privileges of its own, need {wanted}"
    if named:
        privileges = named["privileges"].replace("|", " or ")
        return f"the user, and its token when that has privileges of its own, need {privileges}{where}"
    return ""
