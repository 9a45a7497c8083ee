"""What corosync and Pacemaker print, and programs that fail without telling secrets."""

from __future__ import annotations

import pytest
from salt.exceptions import CommandExecutionError

from _utils import cluster_tools as tools

STATUS = """Quorum information
------------------
Quorum provider:  corosync_votequorum
Nodes:            2
Quorate:          {quorate}

Votequorum information
----------------------
Expected votes:   3
Total votes:      2
Quorum:           2 {blocked}
Flags:            Quorate WaitForAll
"""
MONITOR = """<pacemaker-result api-version="2.25"><nodes>
<node name="hv1" id="1" online="true"/><node name="hv2" id="2" online="false"/>
</nodes></pacemaker-result>"""


def test_votes():
    assert tools.votes(STATUS.format(quorate="Yes", blocked="")) == (True, 2, 2, ("Quorate", "WaitForAll"))
    assert tools.votes(STATUS.format(quorate="No", blocked="Activity blocked"))[:3] == (False, 2, 2)
    assert tools.votes("Cannot initialize QUORUM service") == (False, 0, 0, ())


def test_members():
    text = (
        "runtime.members.1.status (str) = joined\nruntime.members.2.status (str) = left\n"
        "runtime.members.2.ip (str) = r(0) ip(192.0.2.2) \n"
    )
    assert tools.joined(text) == {1}
    assert tools.names({3, 1}, {"b": {"id": 3}, "a": {"id": 1}, "c": {"id": 2}}) == ["a", "b"]


def test_nodes_of_pacemaker():
    assert tools.online(MONITOR) == {"hv1"}
    assert tools.listed(MONITOR) == {"hv1", "hv2"}
    assert tools.online("crm_mon: Error: cluster is not available on this node") == set()


def test_who_has_still_to_be_fenced():
    lost = MONITOR.replace('id="2" online="false"', 'id="2" online="false" unclean="true"')
    told = tools.unfenced(lost, ["hv2", "hv3"])
    assert "are lost, but not fenced: hv2. What they run may go on there" in told
    assert "(stonith_admin --confirm hv2)" in told
    assert tools.unfenced(lost, ["hv1", "hv3"]) == tools.unfenced(MONITOR, ["hv2"]) == tools.unfenced("", ["hv2"]) == ""


@pytest.mark.parametrize(
    ("said", "counts"),
    [("30s\n", True), ("-1\n", True), ("PT30S", True), ("10", True), ("0\n", False), ("0s", False), ("", False),
     ("(null)", False)],
)  # fmt: skip
def test_whether_pacemaker_counts_on_a_watchdog(monkeypatch, said, counts):
    calls = []

    def run(argv, ok=(0,)):
        calls.append((argv[0], 105 in ok))
        return said

    monkeypatch.setattr(tools, "run", run)
    assert tools.watchdog() is counts
    # It ends with 105 where nothing is set.
    assert calls == [("crm_attribute", True)]


def test_attributes():
    assert tools.attributes('name="a" host="hv1" value="x"\nname="a" host="hv2" value=""\nnothing\n') == {
        "hv1": "x",
        "hv2": "",
    }


def test_a_program_reads_what_it_is_given_and_an_error_hides_secrets():
    assert tools.run(["cat"], stdin="text") == "text"
    script = "import sys; sys.exit('refused: ' + sys.stdin.read())"
    with pytest.raises(CommandExecutionError) as caught:
        tools.run(["python3", "-c", script], stdin="name=s3cret a", secrets=["s3cret", "a"])
    assert str(caught.value) == "python3: refused: name=[hidden] a"


def test_a_program_that_is_missing_or_hangs_is_named():
    with pytest.raises(CommandExecutionError, match="no-such-program is not installed"):
        tools.run(["no-such-program"])
    with pytest.raises(CommandExecutionError, match="sleep did not end within 0 s"):
        tools.run(["sleep", "5"], timeout=0.1)


def test_return_codes_that_are_no_failure():
    assert tools.run(["sh", "-c", "echo out; exit 2"], ok=(0, 2)) == "out\n"
    with pytest.raises(CommandExecutionError, match="sh: exit code 3"):
        tools.run(["sh", "-c", "exit 3"])
