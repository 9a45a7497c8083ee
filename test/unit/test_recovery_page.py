"""Every command that docs/recovery.rst tells a person to run is run by a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "recovery.rst"
NODES = "test/integration/cluster/test_recovery.py"
DISKS = "test/integration/cluster_storage/test_virtual_recovery.py"
DEAD = f"{NODES}::test_a_node_that_is_dead_is_fenced_and_joins_once_it_is_switched_on"
APART = f"{NODES}::test_nodes_that_do_not_hear_each_other_both_have_quorum_and_come_together_again"
AGAIN = f"{NODES}::test_after_fencing_has_failed_nobody_forgets_the_node_and_a_person_has_it_tried_again"
BY_HAND = f"{NODES}::test_where_the_device_stays_broken_a_person_says_that_the_node_is_off"
FAILED = f"{NODES}::test_a_resource_that_has_failed_starts_once_its_cause_is_gone_and_the_failure_forgotten"
# Which test runs it: file and name, or a file alone.
RUN_BY = {
    "crm_mon -1 --inactive": DEAD,
    "salt NODE state.highstate": DEAD,
    "corosync-cfgtool -s": APART,
    "corosync-quorumtool -s": APART,
    "stonith_admin --reboot NODE": AGAIN,
    "stonith_admin --confirm NODE": BY_HAND,
    "crm_resource --cleanup --resource NAME --node NODE": FAILED,
    "salt-run fleet.cluster": FAILED,
    "systemctl stop pacemaker corosync": DISKS,
    "salt 'hv*' state.highstate": DISKS,
    "dlm_tool ls": DISKS,
    "dlm_tool status": DISKS,
    "lvmlockctl --info": DISKS,
    "crm_resource --cleanup --resource GUEST": DISKS,
    "salt NODE hypervisor.start GUEST": DISKS,
    "salt NODE hypervisor.migrate GUEST TARGET test=True": DISKS,
    "lvchange --activate n VG/LV": DISKS,
}
BLOCK = re.compile(r"^\.\. code-block:: console\n\n((?:   .*\n|\n)+)", re.MULTILINE)


def commands():
    """Return the commands of the page, without what is said of them."""
    lines = [line.strip() for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")) for line in block.splitlines()]
    assert [line for line in lines if line and not line.startswith("# ")] == []
    return {re.sub(r" {2,}#.*", "", line).removeprefix("# ") for line in lines if line}


def words(command):
    """Return what of a command is always the same: its program and options, not what is named."""
    return [word for word in command.split() if not re.fullmatch(r"[A-Z/]+|'.*'", word)]


def test_every_command_of_the_page_is_run_by_a_test_and_no_other_is_listed():
    assert commands() == set(RUN_BY)


@pytest.mark.parametrize(("command", "where"), RUN_BY.items())
def test_the_test_is_there_and_runs_it(command, where):
    path, _, name = where.partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert not name or f"\ndef {name}(" in text
    for word in words(command):
        assert re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", text), f"{path} has no {word}"
