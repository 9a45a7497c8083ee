"""Volumes that running guests of the cluster get and give up."""

from __future__ import annotations

import pytest
from cluster_harness import GROUPS, STORAGE, guest, whole
from salt.exceptions import CommandExecutionError

from _utils import cluster_cib, cluster_derived, cluster_guests, cluster_ties

NAMES = {"hv1": "hv1", "hv2": "hv2"}
VOLUMES = cluster_guests.volumes(STORAGE)


def live(guests, **pillar):
    return cluster_cib.apply(cluster_cib.empty(), cluster_derived.declared(whole(guests, **pillar)), NAMES).text


def row(name, *nodes, role="Started", failed=False, blocked=False):
    return {"name": name, "role": role, "nodes": list(nodes), "failed": failed, "blocked": blocked}


def seen(guests, volumes, *more):
    rows = [*(row(name, *nodes) for name, nodes in volumes.items()), row("vm-off", role="Stopped"), *more]
    return {"resources": rows, "guests": [{"name": n, "role": "Started", "node": node} for n, node in guests.items()]}


def test_a_volume_that_a_guest_gives_up_and_no_other():
    before = live({"web": guest("one", "two"), "db": guest()})
    found = cluster_ties.leaving(whole({"web": guest("two"), "db": guest()}), VOLUMES, before)
    assert found == {"web": ["/dev/vm/one"]}
    assert cluster_ties.leaving(whole({"web": guest("two", "one")}), VOLUMES, before) == {}
    # It is stopped before, and its volumes with it.
    assert cluster_ties.leaving(whole({"web": guest(ensure="absent")}), VOLUMES, before) == {}


def test_with_what_it_has_open_the_cib_keeps_the_ties():
    before = live({"web": guest("one", "two")})
    after = whole({"web": guest("two")})
    held = cluster_ties.with_disks(after, cluster_ties.leaving(after, VOLUMES, before))
    changes = cluster_cib.apply(before, cluster_derived.declared(held), NAMES).changes
    assert sorted(changes) == ["constraint web-has-vm-one", "constraint web-has-vm-two"]
    gone = cluster_cib.apply(before, cluster_derived.declared(after), NAMES).changes
    assert {"constraint web-with-vm-one", "constraint web-after-vm-one"} <= set(gone)
    assert after["guests"]["web"]["disks"] == guest("two")["disks"]


@pytest.mark.parametrize(
    ("places", "late"),
    [
        ({"vm-one": ["hv2"]}, {"web": ["/dev/vm/two"]}),
        ({"vm-one": ["hv2"], "vm-two": ["hv2"]}, {}),
        # It comes to the guest.
        ({"vm-one": ["hv2"], "vm-two": ["hv1"]}, {}),
    ],
)
def test_a_volume_that_a_guest_gets_and_that_has_not_started(places, late):
    before = live({"web": guest("one")})
    after = whole({"web": guest("one", "two")})
    assert cluster_ties.arriving(after, VOLUMES, before, seen({"web": "hv2"}, places)) == late
    fewer = cluster_ties.without_disks(after, late)
    assert [disk["name"] for disk in fewer["guests"]["web"]["disks"]] == (["one"] if late else ["one", "two"])
    # Nobody is stopped for it.
    assert cluster_ties.arriving(after, VOLUMES, before, seen({}, places)) == {}


@pytest.mark.parametrize("how", [{"role": "Starting"}, {"failed": True}, {"blocked": True}])
def test_a_volume_that_may_fail_still_has_not_started(how):
    before, after = live({"web": guest("one")}), whole({"web": guest("one", "two")})
    there = seen({"web": "hv2"}, {"vm-one": ["hv2"]}, row("vm-two", "hv2", **how))
    assert cluster_ties.arriving(after, VOLUMES, before, there) == {"web": ["/dev/vm/two"]}


def test_a_volume_that_is_tied_already_is_not_untied_again():
    after = whole({"web": guest("one", "two")})
    before = live({"web": guest("one", "two")})
    assert cluster_ties.arriving(after, VOLUMES, before, seen({"web": "hv2"}, {"vm-one": ["hv2"]})) == {}


def test_a_volume_of_all_nodes_has_to_be_where_the_guest_is():
    volumes = {**GROUPS["vm"]["volumes"], "two": {"size_mib": 64, "active": "everywhere"}}
    pillar = {"storage": {**STORAGE, "volume_groups": {"vm": {**GROUPS["vm"], "volumes": volumes}}}}
    before = live({"web": guest("one")}, **pillar)
    after = whole({"web": guest("one", "two")}, **pillar)
    for nodes, late in ((["hv1"], {"web": ["/dev/vm/two"]}), (["hv1", "hv2"], {})):
        there = seen({"web": "hv2"}, {"vm-one": ["hv2"], "vm-two": nodes})
        assert cluster_ties.arriving(after, VOLUMES, before, there) == late


def test_another_guest_does_not_get_what_is_open():
    held = {"web": ["/dev/vm/one"]}
    assert cluster_ties.taken(whole({"web": guest("two"), "db": guest()}), held) == []
    told = cluster_ties.taken(whole({"web": guest("two"), "db": guest("one")}), held)
    assert len(told) == 1
    assert told[0].startswith("libvirt:guests:db:disks: /dev/vm/one is still open in the guest web")


def test_what_virsh_says_of_disks():
    text = " Target   Source\n-----------------------\n vda      /dev/vm/one\n sda      -\n vdb      /srv/a b.raw\n\n"
    assert cluster_ties.open_in(text) == {"/dev/vm/one", "/srv/a b.raw"}


# ---- what is so now ----


class Node:
    """Pacemaker and libvirt of a node, which say one thing after the other."""

    def __init__(self, monkeypatch, *said):
        self.said, self.answers, self.calls, self.clock = list(said), [], [], 0.0
        self.utils = {
            "cluster_status.read": lambda text: text,
            "cluster_tools.monitor": lambda: self.said.pop(0) if len(self.said) > 1 else self.said[0],
            "cluster_tools.run": self.run,
        }
        monkeypatch.setattr("time.sleep", self.sleep)
        monkeypatch.setattr("time.monotonic", lambda: self.clock)

    def sleep(self, seconds):
        self.clock += seconds

    def run(self, argv):
        self.calls.append(argv)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def places(**guests):
    return {"nodes": [{"name": "hv1"}], **seen(guests, {})}


GONE = CommandExecutionError("virsh: failed to get domain 'web'")
BLOCKS = " vda  /dev/vm/one\n"


def test_a_pacemaker_that_says_nothing_is_not_one_without_guests(monkeypatch):
    node = Node(monkeypatch, {"nodes": [], "resources": [], "guests": []})
    with pytest.raises(CommandExecutionError, match="nothing has changed: Pacemaker does not answer"):
        cluster_ties.opened(node.utils, "web", "hv1")


def test_a_guest_that_has_just_moved_is_looked_for_where_it_is(monkeypatch):
    node = Node(monkeypatch, places(web="hv1"), places(web="hv2"))
    node.answers = [GONE, BLOCKS]
    assert cluster_ties.opened(node.utils, "web", "hv1") == {"/dev/vm/one"}
    assert [argv[2] for argv in node.calls] == ["qemu:///system", "qemu+tls://hv2/system"]


def test_a_guest_that_has_just_stopped_has_nothing_open(monkeypatch):
    node = Node(monkeypatch, places(web="hv1"), places())
    node.answers = [GONE]
    assert cluster_ties.opened(node.utils, "web", "hv1") == set()


def test_where_it_cannot_be_seen_the_guest_is_named_after_a_while(monkeypatch):
    node = Node(monkeypatch, places(web="hv2"))
    node.answers = [GONE]
    with pytest.raises(CommandExecutionError, match=r"libvirt:guests:web:disks: .* on hv2 cannot be seen .virsh"):
        cluster_ties.opened(node.utils, "web", "hv1")
    assert 28 <= node.clock <= 30


def test_what_another_guest_has_open(monkeypatch):
    before = live({"web": guest("one", "two"), "db": guest()})
    node = Node(monkeypatch, places(web="hv1", db="hv1"))
    node.answers = [BLOCKS]
    found = cluster_ties.held_by_others(node.utils, "db", VOLUMES, before, "hv1")
    assert found == {"web": ["/dev/vm/one"]}
    assert cluster_ties.held_by_others(node.utils, "web", VOLUMES, before, "hv1") == {}
