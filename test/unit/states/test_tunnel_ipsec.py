"""The look at IPsec: a refused key is a failure, a host that is silent is named, and a dry run tries nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest

from _states import tunnel_ipsec
from _utils import ipsec_status, network_tunnels

MESH = {
    "m": {
        "bridge": "ovs0",
        "nodes": {"hv1": {"address": "192.0.2.1"}, "hv2": {"address": "192.0.2.2"}, "hv3": {"address": "192.0.2.3"}},
    }
}
ROUTED = "m_hv2-1{1}:  ROUTED, TRANSPORT, reqid 1\nm_hv3-1{2}:  ROUTED, TRANSPORT, reqid 2\n"
UP = "{0}-1{{9}}:  INSTALLED, TRANSPORT, reqid 1, ESP SPIs: a_i b_o\n"
REFUSED = "received AUTHENTICATION_FAILED notify error"


class Charon:
    """strongSwan, with what it answers to a try by connection."""

    def __init__(self, monkeypatch, *, test: bool = False) -> None:
        self.status = ROUTED
        self.answers: dict[str, list[str]] = {}
        self.tried: list[str] = []
        self.clock = 0.0
        self.installed = True
        monkeypatch.setattr(tunnel_ipsec, "__opts__", {"test": test, "id": "hv1"}, raising=False)
        monkeypatch.setattr(time, "monotonic", lambda: self.clock)
        monkeypatch.setattr(time, "sleep", self.sleep)
        utils = {
            **{f"network_tunnels.{name}": getattr(network_tunnels, name) for name in ("compose", "peers")},
            **{
                f"ipsec_status.{name}": getattr(ipsec_status, name)
                for name in ("connections", "excused", "lacks", "reason", "silent")
            },
            "ovs_tools.path": lambda _: "/usr/sbin/ipsec" if self.installed else "",
            "ovs_tools.run": self.run,
        }
        monkeypatch.setattr(tunnel_ipsec, "__utils__", utils, raising=False)

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    def run(self, argv: list[str], timeout: float = 0, ok: Any = ()) -> str:
        if argv[1] == "status":
            return self.status
        self.tried.append(argv[2])
        left = self.answers.get(argv[2], [""])
        said = left.pop(0) if len(left) > 1 else left[0]
        if "established" in said:
            self.status += UP.format(argv[2].removesuffix("-1"))
        return said


@pytest.fixture(name="charon")
def running(monkeypatch):
    return Charon(monkeypatch)


def look(**keys: Any) -> dict[str, Any]:
    return tunnel_ipsec.established("ipsec", mesh=MESH, **keys)


def test_what_has_keys_is_left_alone(charon):
    charon.status += UP.format("m_hv2") + UP.format("m_hv3")
    ret = look()
    assert (ret["result"], ret["changes"], charon.tried) == (True, {}, [])
    assert ret["comment"] == "All 2 tunnels with IPsec have agreed on keys."


def test_a_tunnel_without_keys_is_let_try(charon):
    charon.answers = {name: ["connection established successfully"] for name in ("m_hv2-1", "m_hv3-1")}
    ret = look()
    assert ret["result"] is True
    assert charon.tried == ["m_hv2-1", "m_hv3-1"]
    assert "All 2" in ret["comment"]


def test_a_refused_key_is_a_failure_after_a_while(charon):
    charon.status += UP.format("m_hv3")
    charon.answers = {"m_hv2-1": [REFUSED]}
    ret = look(wait_seconds=3)
    assert ret["result"] is False
    assert "hv2 (m_hv2, 192.0.2.2): the other end refuses the key or certificate" in ret["comment"]
    assert "hv3" not in ret["comment"]
    assert len(charon.tried) > 1


def test_the_other_end_may_get_the_same_key_a_little_later(charon):
    charon.status += UP.format("m_hv3")
    charon.answers = {"m_hv2-1": [REFUSED, REFUSED, "connection established successfully"]}
    assert look(wait_seconds=30)["result"] is True


def test_a_host_that_is_silent_is_named_and_is_no_failure(charon):
    charon.status += UP.format("m_hv2")
    ret = look()
    assert ret["result"] is True
    assert ret["comment"].splitlines() == [
        "IPsec has not agreed on keys yet with:",
        "hv3 (m_hv3, 192.0.2.3): the other end does not answer",
    ]
    assert charon.tried == ["m_hv3-1"]


def test_a_tunnel_that_was_not_taken_up_is_a_failure(charon):
    charon.status = UP.format("m_hv2")
    ret = look(wait_seconds=2)
    assert ret["result"] is False
    assert "hv3 (m_hv3, 192.0.2.3): openvswitch-ipsec has not taken it up" in ret["comment"]


def test_a_dry_run_only_looks(monkeypatch):
    charon = Charon(monkeypatch, test=True)
    ret = look()
    assert (ret["result"], ret["changes"], charon.tried) == (True, {}, [])
    assert "has not agreed on keys yet" in ret["comment"]
    charon.installed = False
    assert look()["comment"] == "There is no tunnel with IPsec yet."


def test_without_tunnels_nothing_is_asked(charon):
    assert tunnel_ipsec.established("ipsec")["comment"] == "There is no tunnel with IPsec yet."
