"""Mounts: what a run does is what a dry run predicts, and a dead server costs seconds, not the run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from _states import host_mount
from _utils import mount_probe, mount_table, mount_units, own_files

ROOT = "22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw\n"
AUTOFS = "30 22 0:40 / /vm rw - autofs systemd-1 rw\n"
NFS = "44 30 0:50 / /vm rw,relatime - nfs 10.0.0.1:/vm rw,vers=3,hard\n"
ARGUMENTS: dict[str, Any] = {"device": "10.0.0.1:/vm", "fstype": "nfs", "opts": ["vers=3"]}
ROOT_LINE = "UUID=1 / ext4 errors=remount-ro 0 1\n"
LINK = "remote-fs.target.wants/vm.automount"
MOUNT = {
    "StartLimitIntervalSec=0",
    "What=10.0.0.1:/vm",
    "Where=/vm",
    "Type=nfs",
    "Options=vers=3,_netdev,nofail",
    "TimeoutSec=30",
}


class Host:
    """A host whose systemd mounts at the first access; its commands are played, none is run."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.fstab, self.table, self.units = folder / "fstab", folder / "mountinfo", folder / "units"
        self.fstab.write_text(ROOT_LINE)
        self.table.write_text(ROOT)
        self.alive = True
        self.busy = False
        self.hangs = False
        self.stuck = False
        self.helper = True
        self.inside = "d vm"
        self.calls: list[tuple[str, ...]] = []
        self.context: dict[str, Any] = {}
        self.opts = {"test": False}
        self.mounted = {"vm.mount": NFS}
        self.refusing: set[str] = set()
        monkeypatch.setattr(host_mount, "_FSTAB", self.fstab)
        monkeypatch.setattr(host_mount, "_TABLE", self.table)
        monkeypatch.setattr(host_mount, "_UNITS", self.units)
        monkeypatch.setattr(host_mount, "_run", self.run)
        monkeypatch.setattr("shutil.which", lambda name, **_: name if self.helper else None)
        def loaded(function: Any) -> Any:
            """As Salt's loader has it: while a function of _utils runs, the state module has no __utils__."""

            def call(*args: Any, **kwargs: Any) -> Any:
                with monkeypatch.context() as patch:
                    patch.delattr(host_mount, "__utils__", raising=False)
                    return function(*args, **kwargs)

            return call

        utils = {
            f"{module.__name__.rpartition('.')[2]}.{name}": loaded(function)
            for module in (mount_table, mount_units, mount_probe, own_files)
            for name, function in vars(module).items()
            if callable(function)
        }
        utils["mount_probe.connects"] = lambda *_: self.alive
        monkeypatch.setattr(host_mount, "__utils__", utils, raising=False)
        monkeypatch.setattr(host_mount, "__opts__", self.opts, raising=False)
        monkeypatch.setattr(host_mount, "__context__", self.context, raising=False)
        salt: dict[str, Any] = {"formula.judge": lambda *_: []}
        monkeypatch.setattr(host_mount, "__salt__", salt, raising=False)

    def run(self, *argv: str, timeout: float) -> tuple[int | None, str]:
        assert timeout > 0
        table = self.table.read_text()
        if argv[0] == "find":
            return (1, "No such file or directory") if not self.inside else (0, self.inside)
        if argv[0] == "journalctl":
            return 0, "Mounting...\nmount.nfs: access denied by server\n"
        self.calls.append(argv)
        return self.systemctl(argv, table) if argv[0] == "systemctl" else self.touch(argv, table)

    def unit(self, name: str) -> set[str]:
        """Return the settings of a unit, without those of systemd's installer."""
        lines = (self.units / name).read_text().splitlines()
        return {line for line in lines if "=" in line and not line.startswith(("#", "WantedBy"))}

    def shape(self) -> dict[str, str]:
        """Return all files below the folder of units, and fstab."""
        files = [path for path in self.units.rglob("*") if path.is_symlink() or path.is_file()]
        texts = {str(path): str(path.readlink()) if path.is_symlink() else path.read_text() for path in files}
        return {**texts, "fstab": self.fstab.read_text(), "table": self.table.read_text()}

    def systemctl(self, argv: tuple[str, ...], table: str) -> tuple[int | None, str]:
        """Play systemd."""
        if argv[1] == "daemon-reload" and self.stuck:
            return None, ""
        if argv[1] == "start" and argv[2] in self.refusing:
            return 1, f"Job for {argv[2]} failed."
        if argv[1] == "start":
            self.table.write_text(table + (AUTOFS if argv[2].endswith(".automount") else self.mounted[argv[2]]))
        if argv[1] == "stop":
            # To stop a mount's unit would stop the services that need it, too.
            assert argv[2].endswith(".automount")
            self.table.write_text(table.replace(AUTOFS, ""))
        return 0, ""

    def touch(self, argv: tuple[str, ...], table: str) -> tuple[int | None, str]:
        """Play the programs that touch mounts."""
        if argv[0] == "umount":
            if self.busy:
                return 32, "umount: /vm: target is busy."
            self.table.write_text(table.replace(self.mounted["vm.mount"], ""))
        if argv[0] == "stat":
            if self.hangs:
                return None, ""
            if "10.0.0.1" not in table:
                self.table.write_text(table + NFS)
        if argv[:2] == ("mount", "-o"):
            self.table.write_text(table.replace("rw,relatime - nfs", "ro,relatime - nfs"))
        return 0, ""


@pytest.fixture(name="host")
def played_host(monkeypatch, tmp_path) -> Host:
    return Host(monkeypatch, tmp_path)


def both(host: Host, function: Any, **arguments: Any) -> dict[str, Any]:
    """Predict, look that nothing was touched, run, and return the run's result."""
    before = (host.shape(), list(host.calls))
    host.opts["test"] = True
    foreseen = function("/vm", **arguments)
    assert (host.shape(), host.calls) == before
    host.opts["test"] = False
    done: dict[str, Any] = function("/vm", **arguments)
    assert foreseen["changes"] == done["changes"]
    assert foreseen["result"] is (None if done["changes"] else done["result"])
    return done


def test_a_network_file_system_comes_at_the_first_access(host):
    host.inside = ""
    done = both(host, host_mount.mounted, **ARGUMENTS)
    assert done["result"] is True, done
    assert set(done["changes"]) == {"units", "folder", "automount"}
    assert done["changes"]["units"]["vm.automount"] == {"old": None, "new": ["Where=/vm", "WantedBy=remote-fs.target"]}
    assert host.fstab.read_text() == ROOT_LINE
    assert (host.unit("vm.mount"), host.unit("vm.automount")) == (MOUNT, {"Where=/vm"})
    assert (host.units / LINK).resolve() == host.units / "vm.automount"
    assert host.calls == [
        ("systemctl", "daemon-reload"),
        ("systemctl", "start", "vm.automount"),
        ("stat", "--file-system", "/vm"),
    ]
    again = both(host, host_mount.mounted, **ARGUMENTS)
    assert (again["result"], again["changes"]) == (True, {})


def test_after_a_boot_the_access_is_no_change(host):
    host_mount.mounted("/vm", **ARGUMENTS)
    host.table.write_text(ROOT + AUTOFS)
    done = both(host, host_mount.mounted, **ARGUMENTS)
    assert (done["result"], done["changes"]) == (True, {})
    assert NFS in host.table.read_text()


def test_a_dead_server_fails_but_leaves_everything_ready_for_its_return(host):
    host.alive = False
    done = both(host, host_mount.mounted, **ARGUMENTS)
    assert done["result"] is False
    assert done["comment"] == (
        "/vm (10.0.0.1:/vm): the server 10.0.0.1 does not answer on port 2049; "
        "the next access mounts it when it is back."
    )
    assert host.unit("vm.mount") == MOUNT
    assert AUTOFS in host.table.read_text()
    assert not [call for call in host.calls if call[0] == "stat"]
    host.alive = True
    host.context.clear()
    assert both(host, host_mount.mounted, **ARGUMENTS)["result"] is True


def test_who_holds_up_systemd_is_named(host):
    host.alive, host.stuck = False, True
    host.fstab.write_text(f"{ROOT_LINE}10.0.0.9:/x /old nfs hard 0 0\n")
    assert host_mount.mounted("/vm", **ARGUMENTS)["comment"] == (
        "/vm (10.0.0.1:/vm): systemctl daemon-reload did not end within 60 s; "
        f"systemd waits for /old of {host.fstab}, whose server is dead."
    )
    # The next run has nothing to write, and still has to tell systemd.
    host.alive, host.stuck = True, False
    host.context.clear()
    host.calls.clear()
    assert host_mount.mounted("/vm", **ARGUMENTS)["result"] is True
    assert host.calls[:2] == [("systemctl", "daemon-reload"), ("systemctl", "start", "vm.automount")]


def test_a_server_that_hangs_is_waited_for_once(host):
    host.hangs = True
    assert host_mount.mounted("/vm", **ARGUMENTS)["result"] is False
    assert "10.0.0.1" in host_mount.mounted("/vm", **ARGUMENTS)["comment"]
    assert len([call for call in host.calls if call[0] == "stat"]) == 1


def test_all_dead_servers_of_a_run_share_one_budget(host):
    begun = time.monotonic()
    assert host_mount._budget(35) == 35
    host_mount._waited(begun - 50)
    assert 9 < host_mount._budget(35) <= 10
    host_mount._waited(begun - 50)
    assert host_mount._budget(35) == 1


@pytest.mark.parametrize(
    ("inside", "words"),
    [("d vm\nf disk.img", "holds 1 entries (disk.img)"), ("l vm", "symbolic link"), ("f vm", "no folder")],
)
def test_what_a_mount_would_hide_is_refused(host, inside, words):
    host.inside = inside
    done = both(host, host_mount.mounted, **ARGUMENTS)
    assert done["result"] is False
    assert words in done["comment"]
    assert host.calls == []
    assert "10.0.0.1" not in host.fstab.read_text()


def test_a_mount_that_somebody_made_is_adopted(host):
    host.table.write_text(ROOT + NFS)
    host.fstab.write_text("10.0.0.1:/vm /vm nfs vers=3 0 0\n")
    done = both(host, host_mount.mounted, **ARGUMENTS)
    assert (done["result"], set(done["changes"])) == (True, {"fstab", "units"})
    assert done["changes"]["fstab"] == {"old": "10.0.0.1:/vm /vm nfs vers=3 0 0", "new": None}
    assert host.fstab.read_text() == ""
    assert host.unit("vm.mount") == MOUNT
    assert "From the next boot on" in done["comment"]
    assert not [call for call in host.calls if call[1] in {"start", "stop"}]


def test_units_that_somebody_altered_are_written_again(host):
    host_mount.mounted("/vm", **ARGUMENTS)
    (host.units / LINK).unlink()
    unit = host.units / "vm.mount"
    unit.write_text(unit.read_text().replace("TimeoutSec=30", "TimeoutSec=300"))
    host.calls.clear()
    done = both(host, host_mount.mounted, **ARGUMENTS)
    assert done["changes"] == {
        "units": {
            "vm.mount": {"old": ["TimeoutSec=300"], "new": ["TimeoutSec=30"]},
            LINK: {"old": None, "new": [str(host.units / "vm.automount")]},
        }
    }
    assert host.calls == [("systemctl", "daemon-reload"), ("stat", "--file-system", "/vm")]


def test_a_masked_unit_is_left_to_who_masked_it(host):
    host.units.mkdir()
    (host.units / "vm.mount").symlink_to("/dev/null")
    done = both(host, host_mount.mounted, **ARGUMENTS)
    assert done["result"] is False
    assert "vm.mount is a symbolic link to /dev/null. Unmask or remove the unit" in done["comment"]
    assert both(host, host_mount.absent)["changes"] == {}


def test_what_becomes_local_goes_back_to_fstab(host):
    host_mount.mounted("/vm", **ARGUMENTS)
    host_mount.absent("/vm")
    host_mount.mounted("/vm", **ARGUMENTS)
    host.mounted["vm.mount"] = NFS
    pages = "46 22 254:5 / /vm rw,relatime - hugetlbfs hugetlbfs rw,pagesize=2M\n"
    local = {"device": "hugetlbfs", "fstype": "hugetlbfs", "opts": ["pagesize=2M"]}
    host.table.write_text(ROOT + pages)
    done = both(host, host_mount.mounted, **local)
    assert set(done["changes"]["units"]) == {"vm.mount", "vm.automount", LINK}
    assert done["changes"]["fstab"] == {"old": None, "new": "hugetlbfs /vm hugetlbfs pagesize=2M,nofail 0 0"}
    # One of somebody else's is theirs, unless nothing at all is wanted there.
    (host.units / "vm.mount").write_text("[Mount]\nWhat=x\nWhere=/vm\n")
    assert both(host, host_mount.mounted, **local)["changes"] == {}
    host.mounted["vm.mount"] = pages
    done = both(host, host_mount.absent)
    assert done["changes"]["units"] == {"vm.mount": {"old": ["What=x", "Where=/vm"], "new": None}}


def test_words_for_systemd_that_units_do_not_have_are_refused(host):
    words = ["x-systemd.wanted-by=a", "x-systemd.idle-timeout=9"]
    done = both(host, host_mount.mounted, **{**ARGUMENTS, "opts": words})
    assert done["result"] is False
    assert "x-systemd.wanted-by=a among opts is not known of a network file system" in done["comment"]
    assert "idle-timeout" not in done["comment"]
    assert host.calls == []


def test_flags_are_remounted(host):
    host_mount.mounted("/vm", **ARGUMENTS)
    host.calls.clear()
    done = both(host, host_mount.mounted, **{**ARGUMENTS, "opts": ["vers=3", "ro"]})
    assert done["result"] is True, done
    assert done["changes"]["remount"] == ["ro"]
    assert ("mount", "-o", "remount,ro", "/vm") in host.calls
    assert not [call for call in host.calls if call[1] == "stop"]


def test_what_needs_a_new_mount_waits_for_its_users(host):
    host_mount.mounted("/vm", **ARGUMENTS)
    host.busy = True
    done = host_mount.mounted("/vm", device="10.0.0.1:/other", fstype="nfs", opts=["vers=3"])
    assert done["result"] is False
    assert "10.0.0.1:/other (is 10.0.0.1:/vm)" in done["comment"]
    assert "/vm cannot be unmounted: umount: /vm: target is busy." in done["comment"]
    assert "mount" not in done["changes"]
    host.busy = False
    host.mounted["vm.mount"] = NFS
    host.table.write_text(ROOT + AUTOFS + NFS.replace("vers=3", "vers=4.2"))
    host.mounted["vm.mount"] = NFS.replace("vers=3", "vers=4.2")
    done = both(host, host_mount.mounted, **ARGUMENTS)
    assert done["result"] is True, done
    assert done["changes"]["mount"] == {"old": ["vers=3 (is 4.2)"], "new": "mounted anew"}


def test_absent_takes_it_away_and_leaves_the_rest(host):
    host_mount.mounted("/vm", **ARGUMENTS)
    host.calls.clear()
    done = both(host, host_mount.absent)
    assert done["result"] is True, done
    assert host.fstab.read_text() == ROOT_LINE
    assert host.table.read_text() == ROOT
    # systemd detaches what is below an automount: it must be gone before.
    assert host.calls[:2] == [("umount", "--no-canonicalize", "/vm"), ("systemctl", "stop", "vm.automount")]
    assert [path for path in host.units.rglob("*") if not path.is_dir()] == []
    assert both(host, host_mount.absent)["changes"] == {}


def test_nothing_in_use_is_taken_away(host):
    host_mount.mounted("/vm", **ARGUMENTS)
    host.busy = True
    before = host.shape()
    done = host_mount.absent("/vm")
    assert (done["result"], done["changes"]) == (False, {})
    assert "Nothing is unmounted by force" in done["comment"]
    assert host.shape() == before


def test_unmounted_keeps_a_unit_for_a_person(host):
    host_mount.mounted("/vm", **ARGUMENTS)
    done = both(host, host_mount.unmounted, **ARGUMENTS)
    assert done["result"] is True, done
    assert host.unit("vm.mount") == MOUNT
    assert not (host.units / "vm.automount").exists()
    assert host.table.read_text() == ROOT


def test_a_local_file_system_is_mounted_at_once(host, monkeypatch):
    xfs = "46 22 254:5 / /vm rw,relatime - hugetlbfs hugetlbfs rw,pagesize=2M\n"
    host.mounted["vm.mount"] = xfs
    done = both(host, host_mount.mounted, device="hugetlbfs", fstype="hugetlbfs", opts=["pagesize=2M"])
    assert done["result"] is True, done
    assert done["changes"]["mount"] == {"old": None, "new": "hugetlbfs (hugetlbfs)"}
    assert host.calls[-1] == ("systemctl", "start", "vm.mount")


def test_a_bare_host_is_told_what_is_missing(host):
    host.helper = False
    host.opts["test"] = True
    ret = host_mount.mounted("/vm", **ARGUMENTS)
    assert ret["result"] is None
    assert "once mount.nfs is installed" in ret["comment"]
    host.opts["test"] = False
    ret = host_mount.mounted("/vm", **ARGUMENTS)
    assert (ret["result"], ret["changes"], host.calls) == (False, {}, [])


@pytest.mark.parametrize("name", ["vm", "/vm/", "/a/../b", "/"])
def test_wrong_mount_points_are_refused(host, name):
    ret = host_mount.mounted(name, **ARGUMENTS)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "absolute path" in ret["comment"]


def test_a_hanging_child_is_left_behind():
    begun = time.monotonic()
    assert mount_probe.run("sleep", "20", timeout=0.2) == (None, "")
    assert time.monotonic() - begun < 5
    assert mount_probe.run("echo", "here", timeout=5) == (0, "here")


def test_users_are_named(tmp_path):
    process = tmp_path / "123"
    (process / "fd").mkdir(parents=True)
    (process / "fd" / "7").symlink_to("/vm/disk.qcow2")
    (process / "cmdline").write_bytes(b"qemu\0-name\0guest=srv01,debug-threads=on\0")
    (process / "comm").write_text("qemu-system-x86\n")
    assert mount_probe.users("/vm", str(tmp_path)) == ["guest srv01"]
    assert mount_probe.users("/v", str(tmp_path)) == []


@pytest.mark.parametrize(
    ("fstype", "device", "holds", "expected"),
    [
        ("xfs", "/dev/vg/a", "ext4\n", "fstype is xfs, but /dev/vg/a holds ext4"),
        ("ext4", "/dev/vg/a", "ext4\n", ""),
        ("ext4", "/dev/vg/a", None, ""),
        ("hugetlbfs", "hugetlbfs", None, ""),
        ("modular", "/dev/vg/a", None, ""),
        ("nsf", "nas:/vm", None, "fstype is nsf, and this host knows no file system of that type"),
    ],
)
def test_a_wrong_type_is_told(monkeypatch, tmp_path, fstype, device, holds, expected):
    def run(*argv, timeout):
        if argv[0] == "blkid":
            assert argv[-1] == device
            return (2, "") if holds is None else (0, holds)
        return int(argv[-1] != "fs-modular"), ""

    monkeypatch.setattr(mount_probe, "run", run)
    monkeypatch.setattr("shutil.which", lambda name, **_: name if name == "modprobe" else None)
    known = tmp_path / "filesystems"
    known.write_text("nodev\tsysfs\nnodev\thugetlbfs\n\text4\n")
    assert mount_probe.wrong_type(fstype, device, str(known)) == expected


def test_a_wrong_type_stands_in_the_result(host):
    local: dict[str, Any] = {"device": "nothing", "fstype": "nsf"}
    host.refusing, host.helper = {"vm.mount"}, False
    ret = host_mount.mounted("/vm", **local)
    assert ret["result"] is False
    assert ret["comment"] == "/vm (nothing): fstype is nsf, and this host knows no file system of that type."
