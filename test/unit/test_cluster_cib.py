"""A declaration over a live CIB: what is not declared stays, what is there and equal is not touched."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from _utils import cluster_cib as cib

NODES = {"hv1": "hv1", "hv2.example.org": "hv2"}
LIVE = """<cib epoch="7" num_updates="2" admin_epoch="0"><configuration>
<crm_config><cluster_property_set id="cib-bootstrap-options">
  <nvpair id="cib-bootstrap-options-dc-version" name="dc-version" value="2.1.5"/>
  <nvpair id="cib-bootstrap-options-no-quorum-policy" name="no-quorum-policy" value="stop"/>
</cluster_property_set></crm_config>
<nodes><node id="1" uname="hv1"/></nodes>
<resources>
  <primitive id="theirs" class="ocf" provider="pacemaker" type="Dummy">
    <meta_attributes id="theirs-m"><nvpair id="theirs-r" name="requires" value="quorum"/></meta_attributes></primitive>
  <primitive id="ip" class="ocf" provider="heartbeat" type="IPaddr2">
    <instance_attributes id="made-by-crm">
      <nvpair id="odd-id" name="ip" value="192.0.2.50"/></instance_attributes>
    <meta_attributes id="ip-m"><nvpair id="ip-t" name="target-role" value="Stopped"/></meta_attributes>
    <operations><op id="ip-mon" name="monitor" interval="10s" timeout="20s"/></operations>
  </primitive>
</resources>
<constraints><rsc_location id="theirs-here" rsc="theirs" node="hv1" score="10"/></constraints>
</configuration><status/></cib>"""
IP = {
    "agent": "ocf:heartbeat:IPaddr2",
    "parameters": {"ip": "192.0.2.50"},
    "operations": [{"name": "monitor", "interval": "10s", "timeout": "20s"}],
}
DUMMY = {"agent": "ocf:pacemaker:Dummy"}


def parsed(text):
    return ElementTree.fromstring(text)  # noqa: S314 - written here


def laid(declared, live=LIVE):
    """What differs, and the new CIB; that again gives no difference."""
    result = cib.apply(live, declared, NODES)
    again = cib.apply(result.text, declared, NODES)
    assert again.changes == {}
    ids = [one.get("id") for one in parsed(result.text).iter() if one.get("id")]
    assert len(ids) == len(set(ids)), "an id is there twice"
    return result.changes, parsed(result.text)


def news(changes):
    return {key: change["new"] for key, change in changes.items()}


def test_nothing_declared_changes_nothing():
    changes, new = laid({})
    assert changes == {}
    assert cib.view(new) == cib.view(parsed(LIVE))


def test_what_is_there_and_equal_is_adopted_with_its_ids():
    changes, new = laid({"resources": {"ip": IP}})
    assert changes == {}
    assert new.find(".//nvpair[@id='odd-id']") is not None
    assert new.find(".//op[@id='ip-mon']") is not None


def test_properties_and_defaults():
    declared = {
        "properties": {"no-quorum-policy": "freeze", "stonith-enabled": True, "dc-deadtime": None},
        "resource_defaults": {"resource-stickiness": 100},
        "operation_defaults": {"timeout": "60s"},
    }
    changes, new = laid(declared)
    assert changes == {
        "property no-quorum-policy": {"old": "stop", "new": "freeze"},
        "property stonith-enabled": {"old": None, "new": "true"},
        "resource default resource-stickiness": {"old": None, "new": "100"},
        "operation default timeout": {"old": None, "new": "60s"},
    }
    assert cib.view(new)["property dc-version"] == "2.1.5"
    assert news(laid({"properties": {"no-quorum-policy": None}})[0]) == {"property no-quorum-policy": None}


def test_a_new_resource_with_all_that_it_can_have():
    spec = {
        "agent": "ocf:pacemaker:ping",
        "requires": "quorum",
        "parameters": {"host_list": "192.0.2.1", "dampen": 5, "debug": False},
        "secrets": ["token"],
        "meta": {"failure-timeout": "60s"},
        "operations": [
            {"name": "start", "timeout": "90s"},
            {"name": "monitor", "interval": "30s", "on-fail": "restart"},
        ],
        "clone": {"interleave": True},
    }
    changes, new = laid({"resources": {"ping": spec}})
    assert news(changes) == {
        "clone ping-clone": "ping",
        "clone ping-clone meta interleave": "true",
        "resource ping": "ocf:pacemaker:ping",
        "resource ping in": "ping-clone",
        "resource ping parameter host_list": "192.0.2.1",
        "resource ping parameter dampen": "5",
        "resource ping parameter debug": "false",
        "resource ping parameter token": "lrm://",
        "resource ping meta failure-timeout": "60s",
        "resource ping meta requires": "quorum",
        "resource ping operation start 0s": "timeout=90s",
        "resource ping operation monitor 30s": "on-fail=restart",
    }
    order = [child.tag for child in new.find(".//primitive[@id='ping']")]
    assert order == ["instance_attributes", "meta_attributes", "operations"]


def test_drift_is_repaired_and_what_an_operator_has_stopped_stays_stopped():
    live = LIVE.replace('name="ip" value="192.0.2.50"', 'name="ip" value="192.0.2.99"').replace("20s", "1s")
    live = live.replace("</instance_attributes>", '<nvpair id="x" name="nic" value="eth9"/></instance_attributes>')
    changes, new = laid({"resources": {"ip": IP}}, live)
    assert changes == {
        "resource ip parameter ip": {"old": "192.0.2.99", "new": "192.0.2.50"},
        "resource ip parameter nic": {"old": "eth9", "new": None},
        "resource ip operation monitor 10s": {"old": "timeout=1s", "new": "timeout=20s"},
    }
    assert cib.view(new)["resource ip meta target-role"] == "Stopped"


def test_another_agent_replaces_that_of_a_resource():
    changes, new = laid({"resources": {"ip": {"agent": "systemd:nginx"}}})
    assert changes["resource ip"] == {"old": "ocf:heartbeat:IPaddr2", "new": "systemd:nginx"}
    assert new.find(".//primitive[@id='ip']").get("provider") is None


def test_a_group_has_its_members_in_order_and_keeps_those_of_others():
    declared = {"resources": {"ip": IP, "web": DUMMY}, "groups": {"front": {"resources": ["web", "ip"]}}}
    changes, new = laid(declared)
    assert news(changes)["group front"] == "web, ip"
    assert [one.get("id") for one in new.findall(".//resources/*")] == ["theirs", "front"]
    live = ElementTree.tostring(new, encoding="unicode").replace(
        '<primitive id="ip"', '<primitive id="added" class="ocf" provider="pacemaker" type="Dummy"/><primitive id="ip"'
    )
    assert laid({**declared, "groups": {"front": {"resources": ["web", "ip"]}}}, live)[0] == {
        "group front": {"old": "web, added, ip", "new": "web, ip, added"}
    }
    swapped = laid({**declared, "groups": {"front": {"resources": ["ip", "web"]}}}, live)[0]
    assert swapped == {"group front": {"old": "web, added, ip", "new": "ip, web, added"}}


def test_a_clone_is_made_and_taken_back():
    _, new = laid({"resources": {"ip": {**IP, "clone": {}}}})
    text = ElementTree.tostring(new, encoding="unicode")
    assert new.find(".//resources/clone[@id='ip-clone']/primitive[@id='ip']") is not None
    changes, back = laid({"resources": {"ip": IP}}, text)
    assert news(changes) == {"clone ip-clone": None, "resource ip in": None}
    assert back.find(".//clone") is None


def test_a_fence_device_has_the_names_of_its_targets_and_a_place():
    device = {"agent": "fence_x", "targets": ["hv2.example.org"], "runs_on": ["hv1"], "secrets": ["passwd"]}
    changes, _ = laid({"stonith": {"fence": device}})
    assert news(changes) == {
        "resource fence": "stonith:fence_x",
        "resource fence parameter pcmk_host_list": "hv2",
        "resource fence parameter passwd": "lrm://",
        "constraint fence-not-on-hv2": "rsc_location node=hv2 rsc=fence score=-INFINITY",
    }


def test_a_place_that_is_not_declared_any_more_is_free_again():
    device = {"agent": "fence_x", "targets": ["hv1", "hv2.example.org"]}
    _, new = laid({"stonith": {"fence": {**device, "runs_on": ["hv1"]}}})
    changes, _ = laid({"stonith": {"fence": device}}, ElementTree.tostring(new, encoding="unicode"))
    assert news(changes) == {"constraint fence-not-on-hv2": None}


def test_a_secret_that_stood_plain_is_not_shown():
    device = {"agent": "fence_x", "targets": ["hv1"], "secrets": ["passwd"]}
    _, new = laid({"stonith": {"fence": device}})
    plain = ElementTree.tostring(new, encoding="unicode").replace("lrm://", "hunter2")
    changes, _ = laid({"stonith": {"fence": device}}, plain)
    assert changes == {"resource fence parameter passwd": {"old": "[hidden]", "new": "lrm://"}}


def test_constraints_come_change_and_go():
    declared = {
        "resources": {"ip": IP, "web": DUMMY},
        "constraints": {
            "locations": {"ip-here": {"resource": "ip", "node": "hv2.example.org", "score": 50}},
            "orders": {"ip-first": {"first": "ip", "then": "web", "kind": "Optional", "symmetrical": False}},
            "colocations": {"together": {"resource": "web", "with": "ip", "score": "INFINITY"}},
        },
    }
    changes, new = laid(declared)
    found = {key: value for key, value in news(changes).items() if key.startswith("constraint")}
    assert found == {
        "constraint ip-here": "rsc_location node=hv2 rsc=ip score=50",
        "constraint ip-first": "rsc_order first=ip kind=Optional symmetrical=false then=web",
        "constraint together": "rsc_colocation rsc=web score=INFINITY with-rsc=ip",
    }
    live = ElementTree.tostring(new, encoding="unicode")
    assert news(laid(declared, live.replace('score="50"', 'score="7"'))[0]) == {
        "constraint ip-here": "rsc_location node=hv2 rsc=ip score=50"
    }
    gone = {"constraints": {"orders": {"ip-first": {"ensure": "absent"}}}}
    changes, new = laid(gone, live)
    assert news(changes) == {"constraint ip-first": None}
    assert new.find(".//rsc_location[@id='theirs-here']") is not None


def test_what_is_absent_goes_with_what_speaks_of_it():
    changes, new = laid({"resources": {"theirs": {"ensure": "absent"}, "never": {"ensure": "absent"}}})
    assert news(changes) == {
        "constraint theirs-here": None,
        "resource theirs": None,
        "resource theirs meta requires": None,
    }
    assert new.find(".//primitive[@id='ip']") is not None


def test_the_last_member_takes_its_group_along():
    _, new = laid({"resources": {"web": DUMMY}, "groups": {"front": {"resources": ["web"], "clone": {}}}})
    live = ElementTree.tostring(new, encoding="unicode")
    assert new.find(".//clone[@id='front-clone']/group[@id='front']/primitive[@id='web']") is not None
    _, new = laid({"resources": {"web": {"ensure": "absent"}}}, live)
    assert [one.get("id") for one in new.findall(".//resources/*")] == ["theirs", "ip"]


@pytest.mark.parametrize("clone", [{}, {"clone": {"interleave": True}}])
def test_members_that_stay_leave_a_group_that_goes_as_they_are(clone):
    group = {"front": {"resources": ["web", "ip"], **clone}}
    _, new = laid({"resources": {"ip": IP, "web": DUMMY}, "groups": group})
    live = ElementTree.tostring(new, encoding="unicode").replace(
        '<primitive id="ip"', '<primitive id="added" class="ocf" provider="pacemaker" type="Dummy"/><primitive id="ip"'
    )
    before = {one.get("id"): ElementTree.tostring(one).strip() for one in parsed(live).iter("primitive")}
    changes, new = laid({"resources": {"ip": IP}, "groups": {"front": {"ensure": "absent"}}}, live)
    assert [one.get("id") for one in new.findall(".//resources/*")] == ["theirs", "web", "added", "ip"]
    assert {one.get("id"): ElementTree.tostring(one).strip() for one in new.iter("primitive")} == before
    assert cib.view(new)["resource ip meta target-role"] == "Stopped"
    assert news(changes)["group front"] is None
    gone = {"resources": {"web": {"ensure": "absent"}}, "groups": {"front": {"ensure": "absent"}}}
    _, new = laid(gone, live)
    assert [one.get("id") for one in new.findall(".//resources/*")] == ["theirs", "added", "ip"]


def test_a_fence_device_goes_whose_target_has_left():
    _, new = laid({"stonith": {"fence": {"agent": "fence_x", "targets": ["hv1"]}}})
    gone = {"stonith": {"fence": {"agent": "fence_x", "targets": ["hv3"], "ensure": "absent"}}}
    changes, _ = laid(gone, ElementTree.tostring(new, encoding="unicode"))
    assert news(changes) == {"resource fence": None, "resource fence parameter pcmk_host_list": None}


def test_an_empty_cib_is_enough_for_a_prediction():
    changes = cib.apply(cib.empty(), {"resources": {"web": DUMMY}, "properties": {"a": 1}}, NODES).changes
    assert news(changes) == {"resource web": "ocf:pacemaker:Dummy", "property a": "1"}


def test_what_is_no_cib_is_refused():
    with pytest.raises(ValueError, match="has no configuration"):
        cib.apply("<cib/>", {}, NODES)


def test_a_change_is_one_to_the_next_version_and_none_is_to_the_same():
    versions = [parsed(cib.apply(LIVE, declared, NODES).text) for declared in ({}, {"properties": {"a": 1}})]
    assert [(one.get("epoch"), one.get("num_updates")) for one in versions] == [("7", "2"), ("8", "0")]


def test_the_signature_of_a_secret_is_what_cibsecret_writes():
    assert cib.signature("hunter2") == b"2ab96390c7dbe3439de74d0c9b0b1767"
