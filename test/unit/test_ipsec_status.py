"""What strongSwan prints, read: which connections have keys, and why others have none."""

from __future__ import annotations

import pytest

from _utils import ipsec_status
from _utils.ipsec_status import Connection

STATUS = """\
Routed Connections:
private_hv3-1{2}:  ROUTED, TRANSPORT, reqid 2
private_hv3-1{2}:   10.0.0.1/32[gre] === 10.0.0.3/32[gre]
private_hv2-2{1}:  ROUTED, TRANSPORT, reqid 1
private_hv2-2{1}:   10.0.0.1/32[gre] === 10.0.0.2/32[gre]
vx-in-1{5}:  ROUTED, TRANSPORT, reqid 5
vx-out-1{6}:  ROUTED, TRANSPORT, reqid 6
Security Associations (1 up, 0 connecting):
private_hv2-2[3]: ESTABLISHED 5 minutes ago, 10.0.0.1[10.0.0.1]...10.0.0.2[10.0.0.2]
private_hv2-2{4}:  INSTALLED, TRANSPORT, reqid 1, ESP SPIs: c0ffee01_i c0ffee02_o
private_hv2-2{4}:   10.0.0.1/32[gre] === 10.0.0.2/32[gre]
private_hv3-0{9}:  INSTALLED, TRANSPORT, reqid 1, ESP SPIs: c0ffee03_i c0ffee04_o
vx-out-1{7}:  INSTALLED, TRANSPORT, reqid 6, ESP SPIs: c0ffee05_i c0ffee06_o
"""
# Lines of "ipsec up" of strongSwan 5.9.8, where the other end has another certificate than it had.
ANSWERED = (
    "initiating IKE_SA private_hv2-2[62] to 10.0.0.2\n"
    "sending packet: from 10.0.0.1[500] to 10.0.0.2[500] (1200 bytes)\n"
    "received packet: from 10.0.0.2[500] to 10.0.0.1[500] (489 bytes)\n"
    "parsed IKE_SA_INIT response 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) CERTREQ N(FRAG_SUP) ]\n"
)
ANOTHER = (
    '  using certificate "O=hypervisor tunnel, CN=hv2"\n'
    "certificate status is not available\n"
    "signature validation failed, looking for another key\n"
    "generating INFORMATIONAL request 2 [ N(AUTH_FAILED) ]\n"
    "sending packet: from 10.0.0.1[4500] to 10.0.0.2[4500] (65 bytes)\n"
    "establishing connection 'private_hv2-2' failed\n"
)


def test_the_newest_connections_of_each_tunnel_count():
    found = ipsec_status.connections(STATUS)
    assert found["private_hv2"] == [Connection("private_hv2-2", 2, routed=True, installed=True)]
    # What is left of an earlier version says nothing of the present one.
    assert found["private_hv3"] == [Connection("private_hv3-1", 1, routed=True, installed=False)]
    assert [one.name for one in found["vx"]] == ["vx-in-1", "vx-out-1"]
    assert ipsec_status.connections("Security Associations (0 up, 0 connecting):\n  none\n") == {}


def test_what_a_tunnel_lacks():
    lacking = ipsec_status.lacks(["private_hv2", "private_hv3", "vx", "gone"], ipsec_status.connections(STATUS))
    assert lacking == [Connection("private_hv3-1", 1, routed=True, installed=False), "gone"]


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("connection 'private_hv2-1' established successfully", ""),
        ("received AUTHENTICATION_FAILED notify error\nestablishing connection 'a' failed", "refuses the key"),
        ("tried 1 shared key for '%any' - '10.0.0.2', but MAC mismatched", "has another key"),
        (
            "subject certificate invalid (valid from Jan 01 to Jan 02)\nno trusted RSA public key found for 'hv2'",
            "the other end's certificate has expired",
        ),
        ("no trusted RSA public key found for 'hv2'", "of no CA that is trusted here, or in another name"),
        ("constraint check failed: identity 'hv2' required", "in another name"),
        ("no shared key found for '10.0.0.1' - '10.0.0.2'", "no key for it here"),
        ("received NO_PROPOSAL_CHOSEN notify error", "knows no tunnel"),
        ("giving up after 5 retransmits\npeer not responding, trying again", "does not answer"),
        ("sending packet: from 10.0.0.1[500]\nsomething new", "does not answer"),
        (f"{ANSWERED}giving up after 5 retransmits\npeer not responding, trying again", "does not answer"),
        (f'{ANSWERED}no issuer certificate found for "CN=hv2"\n{ANOTHER}', "of no CA that is trusted here"),
        (f"{ANSWERED}{ANOTHER}", "could not agree with the other end: signature validation failed, looking for"),
        (f"{ANSWERED}\x1b[31mnew{'w' * 300}\n", f"could not agree with the other end: ?[31mnew{'w' * 191}"),
    ],
)
def test_why_a_try_failed(said, meaning):
    assert meaning in ipsec_status.reason(said)
    assert bool(ipsec_status.reason(said)) == bool(meaning)
