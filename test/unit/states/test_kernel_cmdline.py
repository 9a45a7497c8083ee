"""Kernel arguments: single ones are changed, foreign ones stay, and a dry run changes nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from _states import kernel_cmdline
from _states.kernel_cmdline import Change
from _utils import own_files

WANTED = Change(("hugepagesz=1G", "hugepages=4", "nosmt"), ("quiet", "splash"))


def test_words_of_each_kind_of_value():
    args = {"nosmt": None, "iommu": "pt", "hugepages": 4, "console": ["tty0", "ttyS0,115200"]}
    words = ("nosmt", "iommu=pt", "hugepages=4", "console=tty0", "console=ttyS0,115200")
    assert kernel_cmdline.change(args, ["quiet"]) == Change(words, ("quiet",))


@pytest.mark.parametrize(
    ("args", "absent"),
    [
        ({"a b": 1}, []),
        ({"a": "x y"}, []),
        ({"a": '"x"'}, []),
        ({"a": "$(id)"}, []),
        ({"a": "`id`"}, []),
        ({"a": "x;y"}, []),
        ({"a": "x\n"}, []),
        ({"a": False}, []),
        ({}, ["a=1"]),
        ({"a": 1}, ["a"]),
    ],
)
def test_what_would_need_quotes_or_contradicts_itself_is_refused(args, absent):
    with pytest.raises(ValueError, match=r"."):
        kernel_cmdline.change(args, absent)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "hugepagesz=1G hugepages=4 nosmt"),
        ("ro quiet root=/dev/vda1", "ro root=/dev/vda1 hugepagesz=1G hugepages=4 nosmt"),
        ("hugepages=99 hugepages=7 x", "x hugepagesz=1G hugepages=4 nosmt"),
        ("splash=verbose quieter", "quieter hugepagesz=1G hugepages=4 nosmt"),
    ],
)
def test_applied_once_and_again(line, expected):
    once = kernel_cmdline.applied(line, WANTED)
    assert once == expected
    assert kernel_cmdline.applied(once, WANTED) == expected
    assert kernel_cmdline.pending(once, WANTED) == []


def test_pending_names_each_difference():
    line = "root=/dev/vda1 quiet hugepagesz=1G hugepages=2"
    found = kernel_cmdline.pending(line, WANTED)
    assert found == ["+hugepages=4", "+nosmt", "-quiet", "-hugepages=2"]


@pytest.mark.parametrize(
    ("linux", "default"),
    [
        ("", ""),
        ("console=tty0 hugepages=99", "quiet splash loglevel=3"),
        ("a=* [b]", "quiet"),
        ("nosmt", "nosmt=force quiet"),
    ],
)
def test_the_shell_reads_the_drop_in_as_intended(tmp_path, linux, default):
    fragment = tmp_path / "zz.cfg"
    fragment.write_text(kernel_cmdline.drop_in(WANTED))
    script = (
        'set -e; GRUB_CMDLINE_LINUX="$1"; GRUB_CMDLINE_LINUX_DEFAULT="$2"; . "$3"; '
        'printf "%s\\n%s\\n" "$GRUB_CMDLINE_LINUX" "$GRUB_CMDLINE_LINUX_DEFAULT"'
    )
    done = subprocess.run(
        ["sh", "-c", script, "sh", linux, default, str(fragment)],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
        cwd=tmp_path,  # a file here must not be taken for what "*" means
    )
    first, second = done.stdout.splitlines()
    assert first == kernel_cmdline.applied(linux, WANTED)
    stripped = kernel_cmdline.applied(default, Change((), tuple(WANTED.owned)))
    assert second.split() == stripped.split()


def test_edited_keeps_the_rest_of_the_file():
    text = 'GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX="console=tty0 quiet"\n# end\n'
    once = kernel_cmdline.edited(text, WANTED)
    assert once == (
        "GRUB_DEFAULT=0\n"
        'GRUB_CMDLINE_LINUX="console=tty0 hugepagesz=1G hugepages=4 nosmt"\n'
        "# end\n"
    )
    assert kernel_cmdline.edited(once, WANTED) == once


def test_edited_takes_arguments_off_the_second_line_too():
    text = 'GRUB_CMDLINE_LINUX_DEFAULT="splash=silent  loglevel=3 hugepages=9"\nGRUB_CMDLINE_LINUX=\'a\'\n# quiet\n'
    once = kernel_cmdline.edited(text, WANTED)
    assert once == (
        'GRUB_CMDLINE_LINUX_DEFAULT="loglevel=3"\n'
        'GRUB_CMDLINE_LINUX="a hugepagesz=1G hugepages=4 nosmt"\n'
        "# quiet\n"
    )
    assert kernel_cmdline.edited(once, WANTED) == once


def test_edited_does_not_hand_a_comment_to_the_kernel():
    once = kernel_cmdline.edited('GRUB_CMDLINE_LINUX="a" # init=/bin/sh helps\n', Change(("nosmt",), ()))
    assert once == 'GRUB_CMDLINE_LINUX="a nosmt"\n'
    assert kernel_cmdline.edited("GRUB_CMDLINE_LINUX=a#b\n", Change(("c",), ())) == 'GRUB_CMDLINE_LINUX="a#b c"\n'


def test_edited_leaves_lines_alone_that_are_right():
    text = "GRUB_CMDLINE_LINUX='  nosmt  a'\nGRUB_CMDLINE_LINUX_DEFAULT=\"x  y\"\n"
    assert kernel_cmdline.edited(text, Change((), ("quiet",))) == text


def test_edited_adds_a_missing_line_once():
    once = kernel_cmdline.edited("GRUB_DEFAULT=0", Change(("nosmt",), ()))
    assert once == 'GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX="nosmt"\n'


@pytest.mark.parametrize(
    "text",
    [
        'GRUB_CMDLINE_LINUX="a"\nGRUB_CMDLINE_LINUX="b"\n',
        'GRUB_CMDLINE_LINUX="a\n',
        'GRUB_CMDLINE_LINUX="$OTHER a"\n',
        'GRUB_CMDLINE_LINUX="a"\nGRUB_CMDLINE_LINUX+=" b"\n',
        'GRUB_CMDLINE_LINUX="a"\n  export GRUB_CMDLINE_LINUX="b"\n',
        'GRUB_CMDLINE_LINUX_DEFAULT="`a`"\n',
        'GRUB_CMDLINE_LINUX="a" update-something\n',
    ],
)
def test_edited_refuses_what_it_would_break(text):
    with pytest.raises(ValueError, match=r"GRUB_CMDLINE_LINUX|line in"):
        kernel_cmdline.edited(text, WANTED)


# ---- the state ----


class Host:
    """A host with GRUB, whose update-grub reads the drop-in."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.drop_in = folder / "grub.d" / "zz-hypervisor.cfg"
        self.menu = folder / "grub.cfg"
        self.running = folder / "cmdline"
        self.menu.write_text("linux /boot/vmlinuz root=/dev/vda1 ro\n")
        self.running.write_text("BOOT_IMAGE=/boot/vmlinuz root=/dev/vda1 ro\n")
        self.calls: list[list[str]] = []
        self.broken = False
        self.ignored = ""  # a word that the menu does not take over
        self.opts = {"test": False}
        monkeypatch.setattr(kernel_cmdline, "_DROP_IN", self.drop_in)
        monkeypatch.setattr(kernel_cmdline, "_MENUS", (self.menu,))
        monkeypatch.setattr(kernel_cmdline, "_RUNNING", self.running)
        monkeypatch.setattr(kernel_cmdline, "__opts__", self.opts, raising=False)
        salt = {"cmd.run_all": self.run}
        monkeypatch.setattr(kernel_cmdline, "__salt__", salt, raising=False)
        monkeypatch.setattr(kernel_cmdline, "__utils__", {"own_files.write": own_files.write}, raising=False)
        commands = {"update-grub": "/usr/sbin/update-grub"}
        monkeypatch.setattr("salt.utils.path.which", commands.get)

    def run(self, argv: list[str], **kwargs: Any) -> dict[str, Any]:
        assert kwargs["python_shell"] is False
        self.calls.append(argv)
        if self.broken:
            return {"retcode": 1, "stdout": "", "stderr": "no space left"}
        lines = self.drop_in.read_text().splitlines() if self.drop_in.exists() else []
        ours = [line for line in lines if line.startswith("GRUB_CMDLINE_LINUX=")]
        words = ours[0].partition(')"')[0].rpartition(")")[2].rstrip('"') if ours else ""
        words = " ".join(word for word in words.split() if word != self.ignored)
        self.menu.write_text(f"\tlinux /boot/vmlinuz root=/dev/vda1 ro {words}\n")
        return {"retcode": 0, "stdout": "", "stderr": ""}


@pytest.fixture(name="host")
def grub_host(monkeypatch, tmp_path) -> Host:
    return Host(monkeypatch, tmp_path)


def test_grub_is_updated_once_and_a_reboot_is_announced(host):
    ret = kernel_cmdline.present("x", {"nosmt": None, "iommu": "pt"})
    assert ret["result"] is True, ret
    assert ret["changes"] == {"boot": [f"{host.drop_in} is written", "update-grub runs"]}
    assert "reboot is pending" in ret["comment"]
    assert "+nosmt +iommu=pt" in ret["comment"]
    again = kernel_cmdline.present("x", {"nosmt": None, "iommu": "pt"})
    assert (again["result"], again["changes"]) == (True, {})
    assert host.calls == [["update-grub"]]


def test_nothing_is_pending_after_the_reboot(host):
    kernel_cmdline.present("x", {"nosmt": None})
    host.running.write_text("root=/dev/vda1 ro nosmt\n")
    ret = kernel_cmdline.present("x", {"nosmt": None})
    assert ret["comment"] == "The running kernel has these arguments."


def test_an_interrupted_run_is_finished(host):
    host.broken = True
    ret = kernel_cmdline.present("x", {"nosmt": None})
    assert ret["result"] is False
    assert "update-grub failed: no space left" in ret["comment"]
    host.broken = False
    ret = kernel_cmdline.present("x", {"nosmt": None})
    assert ret["changes"] == {"boot": ["update-grub runs"]}


def test_a_menu_that_lacks_an_argument_stays_a_failure_until_it_has_it(host):
    host.ignored = "nosmt"
    for test in (False, False, True):
        host.opts["test"] = test
        ret = kernel_cmdline.present("x", {"nosmt": None})
        assert (ret["result"], ret["changes"]) == (False, {})
        assert ret["comment"] == f"the boot menu ({host.menu}) differs by +nosmt."
    assert host.calls == [["update-grub"]]
    host.opts["test"] = False
    host.menu.write_text("linux /boot/vmlinuz nosmt\n")
    ret = kernel_cmdline.present("x", {"nosmt": None})
    assert (ret["result"], ret["changes"]) == (True, {})


def test_dry_run_predicts_and_touches_nothing(host):
    host.opts["test"] = True
    ret = kernel_cmdline.present("x", {"nosmt": None})
    assert ret["result"] is None
    assert ret["changes"] == {"boot": [f"{host.drop_in} is written", "update-grub runs"]}
    assert not host.drop_in.exists()
    assert host.calls == []


def test_arguments_that_leave_pillar_leave_the_drop_in(host):
    kernel_cmdline.present("x", {"nosmt": None})
    ret = kernel_cmdline.present("x")
    assert ret["changes"] == {"boot": [f"{host.drop_in} is removed", "update-grub runs"]}
    assert not host.drop_in.exists()
    assert kernel_cmdline.present("x")["changes"] == {}


def test_nothing_wanted_needs_no_boot_loader(host):
    host.menu.unlink()
    ret = kernel_cmdline.present("x")
    assert (ret["result"], ret["changes"], host.calls) == (True, {}, [])


def test_a_host_without_grub_is_told(host):
    host.menu.unlink()
    ret = kernel_cmdline.present("x", {"nosmt": None})
    assert ret["result"] is False
    assert "no boot menu of GRUB" in ret["comment"]


def test_grubby_replaces_a_value(monkeypatch, tmp_path):
    host = Host(monkeypatch, tmp_path)
    monkeypatch.setattr("salt.utils.path.which", lambda name: f"/usr/sbin/{name}")
    info = 'index=0\nargs="ro hugepages=2 quiet"\nindex=1\nargs="ro"\n'

    def run(argv: list[str], **_: Any) -> dict[str, Any]:
        host.calls.append(argv)
        return {"retcode": 0, "stdout": info if "--info=ALL" in argv else "", "stderr": ""}

    monkeypatch.setitem(kernel_cmdline.__salt__, "cmd.run_all", run)
    ret = kernel_cmdline.present("x", {"hugepages": 4}, ["quiet"])
    assert ret["changes"] == {"boot": ["+hugepages=4", "-hugepages=2", "-quiet"]}
    assert host.calls[1:] == [
        ["grubby", "--update-kernel=ALL", "--remove-args=hugepages quiet"],
        ["grubby", "--update-kernel=ALL", "--args=hugepages=4"],
    ]


# ---- the reboot ----


class Reboot:
    """A host whose kernel lacks an argument, with guests and systemd played."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.running, self.note, self.boot_id = folder / "cmdline", folder / "lib" / "reboot.json", folder / "boot_id"
        self.running.write_text("root=/dev/vda1 ro quiet\n")
        self.boot_id.write_text("first\n")
        self.guests = ""
        self.unit = "inactive"
        self.calls: list[list[str]] = []
        self.opts = {"test": False}
        monkeypatch.setattr(kernel_cmdline, "_RUNNING", self.running)
        monkeypatch.setattr(kernel_cmdline, "_REBOOT", self.note)
        monkeypatch.setattr(kernel_cmdline, "_BOOT_ID", self.boot_id)
        monkeypatch.setattr(kernel_cmdline, "__opts__", self.opts, raising=False)
        monkeypatch.setattr(kernel_cmdline, "__salt__", {"cmd.run_all": self.run}, raising=False)
        utils = {"libvirt_tools.virsh": self.virsh, "own_files.write": own_files.write}
        monkeypatch.setattr(kernel_cmdline, "__utils__", utils, raising=False)
        monkeypatch.setattr("salt.utils.path.which", lambda name: f"/usr/bin/{name}")

    def virsh(self, *argv: str) -> str:
        assert argv == ("list", "--name")
        if self.guests == "no answer":
            raise CommandExecutionError("virsh list: failed to connect")
        return self.guests

    def run(self, argv: list[str], **kwargs: Any) -> dict[str, Any]:
        assert kwargs["python_shell"] is False
        if argv[1] == "is-active":
            return {"retcode": 3, "stdout": self.unit, "stderr": ""}
        self.calls.append(argv)
        self.unit = "activating"
        return {"retcode": 0, "stdout": "", "stderr": ""}

    def state(self, *, allow: bool = True, test: bool = False) -> dict[str, Any]:
        self.opts["test"] = test
        return kernel_cmdline.booted("x", {"nosmt": None}, ["quiet"], allow_reboot=allow)


@pytest.fixture(name="pending")
def host_with_a_pending_reboot(monkeypatch, tmp_path) -> Reboot:
    monkeypatch.setattr("salt.utils.path.which", "/usr/bin/{}".format)
    return Reboot(monkeypatch, tmp_path)


def test_without_consent_the_pillar_key_is_named(pending):
    ret = pending.state(allow=False)
    assert (ret["result"], ret["changes"], pending.calls) == (True, {}, [])
    assert "differs by +nosmt -quiet" in ret["comment"]
    assert "set kvm:kernel:allow_reboot to true" in ret["comment"]
    assert ret["warnings"] == [ret["comment"]]


def test_with_consent_the_reboot_waits_for_the_end_of_the_run(pending):
    foreseen = pending.state(test=True)
    assert (foreseen["result"], pending.calls, pending.note.exists()) == (None, [], False)
    ret = pending.state()
    assert (ret["result"], ret["changes"]) == (True, {"reboot": {"for": ["+nosmt", "-quiet"]}})
    assert foreseen["changes"] == ret["changes"]
    (argv,) = pending.calls
    assert argv[:2] == ["systemd-run", "--no-block"]
    assert argv[-2:] == ["systemctl", "reboot"]
    assert any(f"--pid={os.getpid()}" in word for word in argv)
    # Asked again when the run has ended: a guest may have come meanwhile.
    assert any("/usr/bin/virsh --quiet --connect qemu:///system list --name" in word for word in argv)
    pending.state()
    assert len(pending.calls) == 1


def test_a_kernel_that_did_not_get_them_is_not_rebooted_again(pending):
    pending.state()
    pending.boot_id.write_text("second\n")
    pending.unit = "inactive"
    for _ in range(2):
        ret = pending.state()
        assert (ret["result"], ret["changes"]) == (False, {})
        assert "rebooted for them already" in ret["comment"]
    assert len(pending.calls) == 1
    pending.running.write_text("quiet nosmt\n")
    assert pending.state()["result"] is False, "one of them alone does not come either"
    # Other arguments are another matter.
    pending.opts["test"] = False
    ret = kernel_cmdline.booted("x", {"iommu": "pt"}, allow_reboot=True)
    assert ret["changes"] == {"reboot": {"for": ["+iommu=pt"]}}


def test_nothing_is_left_after_the_reboot(pending):
    pending.state()
    pending.boot_id.write_text("second\n")
    pending.running.write_text("root=/dev/vda1 ro nosmt\n")
    assert pending.state(test=True)["result"] is True
    assert pending.note.exists()
    ret = pending.state()
    assert (ret["result"], ret["changes"], pending.note.exists()) == (True, {}, False)


def test_guests_are_not_stopped(pending):
    pending.guests = "srv02\nsrv01\n\n"
    ret = pending.state()
    assert (ret["result"], ret["changes"], pending.calls) == (True, {}, [])
    assert "guests that run here: srv01, srv02" in ret["comment"]
    pending.guests = "no answer"
    ret = pending.state()
    assert (ret["result"], ret["changes"], pending.calls) == (False, {}, [])
    assert "libvirt cannot be asked which guests run" in ret["comment"]
