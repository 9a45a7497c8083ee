"""What a node says of its cluster, with the remedy beside what is wrong."""

from __future__ import annotations

import pytest

from _utils import cluster_status as status
from _utils.cluster_tools import Quorum

HEALTHY = """<pacemaker-result><summary><cluster_options stonith-enabled="true"/></summary>
<nodes>
 <node name="hv1" online="true" standby="false" maintenance="false" unclean="false" is_dc="true"/>
 <node name="hv2" online="true" standby="false" maintenance="false" unclean="false" is_dc="false"/>
</nodes>
<resources>
 <resource id="fence" resource_agent="stonith:fence_x" role="Started" managed="true" failed="false" blocked="false">
  <node name="hv2"/></resource>
 <clone id="ping-clone"><resource id="ping" resource_agent="ocf::pacemaker:ping" role="Started" managed="true"
  failed="false" blocked="false"><node name="hv1"/></resource></clone>
</resources></pacemaker-result>"""
CONF = "totem {\n    version: 2\n    cluster_name: c\n}\n"


class Node:
    """A node with a cluster, as its programs see it."""

    def __init__(self, root) -> None:
        self.root = root
        (root / "etc/corosync").mkdir(parents=True)
        (root / status.CONF).write_text(CONF)
        self.active = {"corosync.service", "pacemaker.service"}
        self.votes = Quorum(True, 2, 1, ())
        self.text = HEALTHY
        self.watchdog = False

    def facts(self):
        utils = {
            "cluster_tools.active": lambda unit: unit in self.active,
            "cluster_tools.monitor": lambda: self.text,
            "cluster_tools.quorum": lambda: self.votes,
            "cluster_tools.watchdog": lambda: self.watchdog,
        }
        return status.facts(utils, self.root)


@pytest.fixture(name="node")
def a_node(tmp_path):
    return Node(tmp_path)


def test_a_host_in_no_cluster(tmp_path):
    assert status.facts({}, tmp_path) is None


def test_a_healthy_cluster_has_no_problems(node):
    found = node.facts()
    assert (found["name"], found["running"], found["quorate"], found["votes"], found["votes_needed"]) == (
        "c", True, True, 2, 1,
    )  # fmt: skip
    assert found["problems"] == []
    assert [one["name"] for one in found["nodes"] if one["dc"]] == ["hv1"]
    assert found["fencing"]["enabled"] is True
    assert [(one["name"], one["nodes"]) for one in found["fencing"]["devices"]] == [("fence", ["hv2"])]
    assert [(one["name"], one["agent"]) for one in found["resources"]] == [("ping", "ocf:pacemaker:ping")]


def test_services_that_do_not_run_are_named(node):
    node.active = {"corosync.service"}
    assert node.facts()["problems"] == ["Pacemaker does not run; see: systemctl status pacemaker"]
    node.active = set()
    assert node.facts()["problems"] == ["corosync does not run; see: systemctl status corosync"]
    assert node.facts()["running"] is False


def test_a_lost_quorum_is_named_with_figures(node):
    node.votes = Quorum(False, 1, 2, ())
    assert node.facts()["problems"][0].startswith("no quorum: 1 votes are here and 2 are needed")


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('name="hv2" online="true"', 'name="hv2" online="false"', "hv2 is offline; start it, or run its highstate"),
        ('maintenance="false" unclean="false" is_dc="false"', 'maintenance="false" unclean="true" is_dc="false"',
         ("hv2 is lost and not fenced yet, so nothing of it is recovered; if fencing fails and hv2 is certainly off: "
          "stonith_admin --confirm hv2")),
        ('standby="false" maintenance="false" unclean="false" is_dc="true"',
         'standby="true" maintenance="false" unclean="false" is_dc="true"', "hv1 is in standby"),
        ('stonith-enabled="true"', 'stonith-enabled="false"',
         "fencing is off (stonith-enabled): a lost node's resources may run twice"),
        ('"stonith:fence_x" role="Started"', '"stonith:fence_x" role="Stopped"', "the fence device fence is stopped"),
        ('role="Started" managed="true"\n', 'role="Started" managed="false"\n',
         "ping is not managed: Pacemaker leaves it alone"),
        ('failed="false" blocked="false"><node name="hv1"/>', 'failed="true" blocked="true"><node name="hv1"/>',
         "ping is blocked on hv1: its failure needs a person; repair it, then: crm_resource --cleanup --resource ping"),
        ("</resources>",
         ('</resources><fence_history><fence_event target="hv2" status="failed" exit-reason="no answer" completed="2"/>'
          '<fence_event target="hv1" status="failed" completed="1"/>'
          '<fence_event target="hv1" status="success" completed="2"/></fence_history>'),
         "fencing of hv2 has failed (no answer); repair the device, then: stonith_admin --reboot hv2"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_what_can_be_done(node, old, new, text):
    assert old in node.text
    node.text = node.text.replace(old, new, 1)
    assert node.facts()["problems"] == [text]


def test_no_fence_device_matters_where_there_are_resources(node):
    device = node.text[node.text.index('<resource id="fence"') : node.text.index("<clone")]
    node.text = node.text.replace(device, "")
    (problem,) = node.facts()["problems"]
    assert problem.startswith("there is no fence device, so resources that need one do not start")
    # sbd without disks: each node resets itself.
    node.watchdog = True
    assert node.facts()["problems"] == []
    node.text = node.text.replace('stonith-enabled="true"', 'stonith-enabled="false"')
    (problem,) = node.facts()["problems"]
    assert problem.startswith("fencing is off")


def test_a_failed_action_has_its_remedy(node):
    node.text = node.text.replace(
        "</resources>",
        '</resources><failures><failure op_key="my_ip_monitor_10000" node="hv2" exitstatus="error" '
        'exitreason="no such card" task="monitor" last-rc-change="today"/></failures>',
    )
    assert node.facts()["failures"] == [
        {
            "resource": "my_ip",
            "operation": "monitor",
            "node": "hv2",
            "reason": "no such card",
            "at": "today",
            "remedy": "repair the cause on hv2, then: crm_resource --cleanup --resource my_ip --node hv2",
        }
    ]


def test_a_pacemaker_that_does_not_answer(node):
    node.text = "crm_mon: Error: cluster is not available on this node"
    found = node.facts()
    assert found["problems"] == ["Pacemaker does not answer; see: journalctl -u pacemaker"]
    assert found["nodes"] == []


def test_guests_are_named_among_the_resources_with_where_they_run(node):
    one = '<resource id="web" resource_agent="ocf::heartbeat:VirtualDomain" role="{role}">{on}</resource>'
    running = one.format(role="Started", on='<node name="hv2"/>')
    node.text = HEALTHY.replace("</resources>", f"{running}{one.format(role='Stopped', on='')}</resources>")
    assert node.facts()["guests"] == [
        {"name": "web", "role": "Started", "node": "hv2"}, {"name": "web", "role": "Stopped", "node": None}
    ]  # fmt: skip


def test_a_failed_migration_is_the_guests(node):
    failure = '<failure op_key="my_web_migrate_to_0" task="migrate_to" node="hv1" exitreason="no"/>'
    node.text = HEALTHY.replace("</pacemaker-result>", f"<failures>{failure}</failures></pacemaker-result>")
    (found,) = node.facts()["failures"]
    assert (found["resource"], found["operation"]) == ("my_web", "migrate_to")
