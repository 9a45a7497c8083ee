"""Files of a cluster of the old kind, with cman and clvmd: their text from what pillar declares.

No distribution of today has packages of it. cluster.conf(5), cman(5) and corosync.conf(5) of their time say what stands
in the files. Pure functions.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

Nodes = Mapping[str, Mapping[str, Any]]

HEADER = "Written by Salt. Change the pillar: what is edited here is replaced by the next run."
_AUTHKEY = "/etc/corosync/authkey"
_PORT = 5405
_LOCKING = re.compile(r"^[ \t]*#?[ \t]*locking_type[ \t]*=[ \t]*-?\d+[ \t]*$", re.MULTILINE)
_GLOBAL = re.compile(r"^global[ \t]*\{[ \t]*$", re.MULTILINE)
_LINE = "    locking_type = 3"


def _ordered(nodes: Nodes) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the nodes by their number, without those that leave."""
    there = [item for item in nodes.items() if item[1].get("ensure") != "absent"]
    return sorted(there, key=lambda item: int(item[1]["id"]))


def cluster_conf(cluster: Mapping[str, Any], nodes: Nodes) -> str:
    """Returns the text of cluster.conf. Fencing is left to Pacemaker: fence_pcmk hands each order on to it.

    Args:
        cluster: the configuration of cluster/: ``name``, ``token``, ``crypto``, ``quorum`` and ``cman``.
        nodes: by minion id.
    """
    ordered = _ordered(nodes)
    cman = cluster["cman"]
    top = ElementTree.Element("cluster", name=cluster["name"], config_version=str(cman["config_version"]))
    top.append(ElementTree.Comment(f" {HEADER} "))
    options = {"transport": "udpu"} if cman["transport"] == "udpu" else {}
    if cluster["quorum"].get("two_node", len(ordered) == 2):
        # One vote is enough for either of the two; fencing decides which of them goes on.
        options |= {"two_node": "1", "expected_votes": "1"}
    if cluster["crypto"]["cipher"] != "none":
        options["keyfile"] = _AUTHKEY
    ElementTree.SubElement(top, "cman", options)
    ElementTree.SubElement(top, "totem", token=str(cluster["token"]))
    listed = ElementTree.SubElement(top, "clusternodes")
    for minion, spec in ordered:
        name = str(spec.get("name", minion))
        node = ElementTree.SubElement(listed, "clusternode", name=name, nodeid=str(spec["id"]), votes="1")
        for address in spec["addresses"][1:]:
            ElementTree.SubElement(node, "altname", name=str(ipaddress.ip_address(address)))
        method = ElementTree.SubElement(ElementTree.SubElement(node, "fence"), "method", name="pcmk-redirect")
        ElementTree.SubElement(method, "device", name="pcmk", port=name)
    devices = ElementTree.SubElement(top, "fencedevices")
    ElementTree.SubElement(devices, "fencedevice", name="pcmk", agent="fence_pcmk")
    ElementTree.indent(top)
    return f'<?xml version="1.0"?>\n{ElementTree.tostring(top, encoding="unicode")}\n'


def corosync_conf(cluster: Mapping[str, Any], nodes: Nodes, minion: str) -> str:
    """Returns the text of corosync.conf of version 1, which counts where corosync is started without cman.

    Args:
        cluster: as :func:`cluster_conf` takes it.
        nodes: by minion id.
        minion: this node's.
    """
    ordered = _ordered(nodes)
    udpu = cluster["cman"]["transport"] == "udpu"
    lines = [f"# {HEADER}", "compatibility: whitetank", "totem {", "    version: 2", f"    token: {cluster['token']}"]
    lines.append(f"    secauth: {'off' if cluster['crypto']['cipher'] == 'none' else 'on'}")
    lines += ["    transport: udpu"] if udpu else []
    own = nodes[minion]["addresses"]
    lines += ["    rrp_mode: passive"] if len(own) > 1 else []
    for number, address in enumerate(own):
        lines += ["    interface {", f"        ringnumber: {number}", f"        bindnetaddr: {address}"]
        # Rings need ports of their own, and corosync takes the one below as well.
        lines.append(f"        mcastport: {_PORT + 2 * number}")
        if udpu:
            members = [str(spec["addresses"][number]) for _, spec in ordered]
            lines += [line for one in members
                      for line in ("        member {", f"            memberaddr: {one}", "        }")]  # fmt: skip
        else:
            lines.append(f"        mcastaddr: 239.192.{number + 1}.1")
        lines.append("    }")
    lines += ["}", "logging {", "    to_syslog: yes", "    to_logfile: no", "    timestamp: off", "}"]
    return "\n".join([*lines, ""])


def lvm_conf(text: str) -> str:
    """Returns lvm.conf with built-in clustered locking, by which LVM asks clvmd, and nothing else altered.

    Raises:
        ValueError: there is neither that line nor a section for it.
    """
    if _LOCKING.search(text):
        first, count = _LOCKING.subn(_LINE, text, count=1)
        return first if count else text
    if _GLOBAL.search(text):
        return _GLOBAL.sub(lambda found: f"{found.group(0)}\n{_LINE}", text, count=1)
    raise ValueError("has neither locking_type nor a section global, so it is not lvm.conf")
