"""Units of network file systems, as text, and what systemd itself thinks of them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from _utils import mount_table, mount_units
from _utils.mount_table import unit

FOLDER = "/etc/systemd/system"
WORDS = [
    *("vers=3", "x-systemd.idle-timeout=60", "x-systemd.requires=ipsec.service", "x-systemd.after=/srv/a-b"),
    *("x-systemd.before=pool", "x-systemd.requires-mounts-for=/srv"),
]


def of(options, *, now=True):
    entry = mount_table.wanted_entry("/srv/vm", "10.0.0.1:/100%", "nfs", options, 30, now=now)
    return mount_units.files(entry, unit, FOLDER)


def test_all_that_fstab_could_say():
    files = of(WORDS)
    assert list(files) == ["srv-vm.mount", "srv-vm.automount", "remote-fs.target.wants/srv-vm.automount"]
    mount = files["srv-vm.mount"].removeprefix(mount_units.HEADER)
    assert mount == (
        "\n[Unit]\nStartLimitIntervalSec=0\nRequires=ipsec.service\nAfter=ipsec.service\nAfter=srv-a\\x2db.mount\n"
        "Before=pool.mount\nRequiresMountsFor=/srv\n"
        "\n[Mount]\nWhat=10.0.0.1:/100%%\nWhere=/srv/vm\nType=nfs\nOptions=vers=3,_netdev,nofail\nTimeoutSec=30\n"
    )
    automount = files["srv-vm.automount"].removeprefix(mount_units.HEADER)
    assert automount == "\n[Automount]\nWhere=/srv/vm\nTimeoutIdleSec=60\n\n[Install]\nWantedBy=remote-fs.target\n"
    assert files["remote-fs.target.wants/srv-vm.automount"] == f"{FOLDER}/srv-vm.automount"


def test_what_is_mounted_by_hand_has_no_automount():
    files = of(["ro"], now=False)
    assert list(files) == ["srv-vm.mount"]
    assert "\nOptions=ro,_netdev,nofail\n" in files["srv-vm.mount"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_them(tmp_path):
    files = {name: text for name, text in of(["vers=3", "x-systemd.idle-timeout=60"]).items() if "/" not in name}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    argv = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in files)]

    def said():
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60).stderr

    assert "srv-vm" not in said(), said()
    (tmp_path / "srv-vm.mount").write_text(files["srv-vm.mount"].replace("Where=/srv/vm", "Where=/srv/other"))
    assert "srv-vm" in said()


def test_unknown_words():
    assert mount_units.unknown([*WORDS, "x-systemd.makefs", "x-gvfs-hide"]) == ["x-systemd.makefs"]


def test_differences_are_settings():
    old, new = of(["vers=3"])["srv-vm.mount"], of(["vers=4.2"])["srv-vm.mount"]
    assert mount_units.difference(old, new) == {
        "old": ["Options=vers=3,_netdev,nofail"],
        "new": ["Options=vers=4.2,_netdev,nofail"],
    }
    assert mount_units.difference(f"# a comment\n{new}", new) == {"old": [], "new": []}
    assert mount_units.difference("", "/x") == {"old": None, "new": ["/x"]}
    assert mount_units.difference("What=x", "") == {"old": ["What=x"], "new": None}


def test_ours():
    assert mount_units.ours(of([])["srv-vm.mount"])
    assert not mount_units.ours("[Mount]\nWhat=x\n")
