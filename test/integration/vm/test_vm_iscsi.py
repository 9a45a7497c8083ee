"""Disks of an iSCSI target that the host serves to itself: connected, silent, back by themselves, kept in use."""

import json

import pytest
from declared import HOST, call, predicted_and_done

from lab import salt

pytestmark = pytest.mark.long
TARGET = "iqn.2003-01.org.example:disk1"
NAME = "iqn.2026-01.org.example:hv1"
PASSWORD, WRONG = "only-these-two-know", "somebody-elses-word"
IMAGE = "/srv/iscsi.raw"
ADMIN = "tgtadm --lld iscsi"
SERVE = f"""
truncate --size=64M {IMAGE}
systemctl start tgt
{ADMIN} --op new --mode target --tid 1 --targetname {TARGET}
{ADMIN} --op new --mode logicalunit --tid 1 --lun 1 --backing-store {IMAGE}
{ADMIN} --op bind --mode target --tid 1 --initiator-name {NAME}
{ADMIN} --op new --mode account --user hv1 --password {PASSWORD}
{ADMIN} --op bind --mode account --tid 1 --user hv1
"""
WORDS = ("state.apply", "kvm.iscsi")
STATE = f"kvm_iscsi_target_{TARGET}"


def shell(lab, script, *, check=True):
    """Run a script of the test's own on the host."""
    return lab.run(HOST, ["sh", "-e", "-s"], stdin=script, timeout=300, check=check).stdout.strip()


def lay(lab, **target):
    """Write the pillar with the target."""
    login = {"user": "hv1", "password": PASSWORD}
    spec = {"portals": [lab.hosts.addresses[HOST]], **login, **target}
    own = {"kvm": {"iscsi": {"initiator": NAME, "targets": {TARGET: spec}}}}
    text = salt.pillar_files(lab.hosts)["hv1.sls"]
    salt.merge_pillar(lab.hosts, {"hv1.sls": salt.merged_yaml(text, own)})


def holds(lab, word, *paths):
    """Whether a word stands in files of the host, or below folders; the marks of jobs come and go."""
    done = lab.run(HOST, ["grep", "-rqF", "--exclude-dir=proc", "-e", word, *paths], check=False, timeout=300)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def told(lab, word):
    """Whether a word stands in what Salt keeps and logs on the host, or in its journal."""
    journal = lab.run(HOST, ["journalctl", "--no-pager", "--all"], timeout=300).stdout
    assert journal
    return word in journal or holds(lab, word, "/var/log/salt", "/var/cache/salt")


def disk(lab):
    """Return the stable name of the target's disk."""
    return f"/dev/disk/by-path/ip-{lab.hosts.addresses[HOST]}:3260-iscsi-{TARGET}-lun-1"


@pytest.fixture(scope="module", name="served")
def host_with_a_target(mixed):
    """The host, which serves a disk to the one initiator of this name that proves itself."""
    mixed.run(HOST, ["salt-call", "saltutil.sync_all"], timeout=300)
    shell(mixed, SERVE)
    yield mixed
    shell(mixed, "iscsiadm --mode node --logoutall=all; rm -rf /etc/iscsi/nodes/*; systemctl stop tgt", check=False)
    shell(mixed, f"rm -f {IMAGE}")
    salt.merge_pillar(mixed.hosts, salt.pillar_files(mixed.hosts))


def test_a_wrong_password_is_refused_by_the_target_and_stands_where_root_alone_reads_it(served):
    lay(served, password=WRONG)
    row = call(served, *WORDS)[STATE]
    assert (row["result"], row["changes"]) == (False, {})
    assert "authorization failure" in row["comment"]
    assert WRONG not in json.dumps(row)
    # open-iscsi reads it from its record and from nowhere else.
    (record,) = shell(served, f"grep -rlF {WRONG} /etc/iscsi").splitlines()
    assert record.startswith(f"/etc/iscsi/nodes/{TARGET}/")
    assert shell(served, f"stat --format='%U:%G %a' '{record}'") == "root:root 600"
    assert not told(served, WRONG)


def test_the_disk_is_predicted_and_there_and_a_second_run_is_silent(served):
    lay(served)
    changes = predicted_and_done(served, *WORDS)
    portal = f"{served.hosts.addresses[HOST]}:3260"
    assert changes[STATE][portal]["session"] == {"old": "none", "new": "connected"}
    assert PASSWORD not in json.dumps(changes)
    assert shell(served, f"blockdev --getsize64 {disk(served)}") == str(64 << 20)
    assert predicted_and_done(served, *WORDS) == {}
    files = shell(served, f"grep -rl {PASSWORD} /etc/iscsi; find /etc/iscsi/nodes -type f -perm /077")
    assert [line.split("/")[4] for line in files.splitlines()] == [TARGET]
    assert not told(served, PASSWORD)


def test_it_comes_back_by_what_starts_at_boot(served):
    shell(served, "iscsiadm --mode node --logoutall=all; udevadm settle")
    assert shell(served, f"test -e {disk(served)} || echo gone") == "gone"
    shell(served, "systemctl is-enabled open-iscsi; systemctl restart open-iscsi; udevadm settle")
    assert shell(served, f"test -e {disk(served)} && echo there") == "there"


def test_a_session_that_was_ended_by_hand_is_repaired_alone(served):
    shell(served, "iscsiadm --mode node --logoutall=all; udevadm settle")
    assert set(predicted_and_done(served, *WORDS)) == {STATE}
    assert predicted_and_done(served, *WORDS) == {}


def test_a_disk_that_is_in_use_stays_and_then_goes(served):
    shell(served, f"mkfs.ext4 -q {disk(served)}; mount {disk(served)} /mnt")
    lay(served, ensure="absent")
    try:
        row = call(served, *WORDS)[STATE]
        assert (row["result"], row["changes"]) == (False, {})
        assert "is used by a file system" in row["comment"]
        # Not only words: a disk that has gone takes nothing to write.
        shell(served, f"test -e {disk(served)}; echo held >/mnt/held; sync /mnt/held")
        for mode in ("session", "node"):
            assert TARGET in shell(served, f"iscsiadm --mode {mode}")
    finally:
        shell(served, "umount /mnt")
    assert set(predicted_and_done(served, *WORDS)) == {STATE}
    assert shell(served, f"test -e {disk(served)} || echo gone; iscsiadm --mode node || true") == "gone"
