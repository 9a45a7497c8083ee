"""Which parts of network/ a pillar uses: tunnels and their encryption, and only where they are present."""

from __future__ import annotations

from typing import Any

import pytest

from _utils.network_uses import uses

GRE: dict[str, Any] = {"type": "gre", "remote": "192.0.2.9"}
NODES = {"hv1": {"address": "192.0.2.1"}, "hv2": {"address": "192.0.2.2"}}
MESH: dict[str, Any] = {"bridge": "ovs0", "nodes": NODES}


def used(ports: dict[str, Any] | None = None, mesh: dict[str, Any] | None = None, **bridge: Any) -> tuple[bool, bool]:
    bridges = {"ovs0": {"ports": ports, **bridge}} if ports else {"ovs0": bridge}
    found = uses({"ovs": {"bridges": bridges}, "mesh": {"private": mesh} if mesh else {}})
    return found["tunnels"], found["ipsec"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (used(), (False, False)),
        (used({"eth1": {}, "int0": {"type": "internal"}, "p": {"type": "patch", "peer": "q"}}), (False, False)),
        (used({"g": {**GRE, "ensure": "absent"}}), (False, False)),
        (used({"g": GRE}, ensure="absent"), (False, False)),
        (used({}, {**MESH, "ensure": "absent"}), (False, False)),
        (used({"g": {**GRE, "ipsec": False}}), (True, False)),
        (used({}, {**MESH, "ipsec": False}), (True, False)),
        (used({"g": GRE}), (True, True)),
        (used({}, MESH), (True, True)),
        (used({"g": GRE}, {**MESH, "ipsec": False}), (True, True)),
        (used({"g": {**GRE, "type": "geneve", "ipsec": False}}, MESH), (True, True)),
    ],
)
def test_only_what_is_present_counts(found, expected):
    assert found == expected
