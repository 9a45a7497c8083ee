"""Arguments of virt-install and virt-xml: nothing in a value becomes an option."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _utils import guest_argv

CAPABILITIES = """<capabilities><host><cpu><arch>x86_64</arch></cpu></host>
<guest><os_type>hvm</os_type><arch name='i686'><machine>pc</machine><domain type='qemu'/></arch></guest>
<guest><os_type>hvm</os_type><arch name='x86_64'><machine>pc</machine><machine>q35</machine>
<domain type='qemu'/>{kvm}</arch></guest></capabilities>"""
HOST = {"type": "qemu", "arch": "x86_64", "machine": "q35"}


def split(option):
    """Split an option as virt-install 4.1 does (parse_optstr_tuples in virtinst/cli.py)."""
    reader = shlex.shlex(option, posix=True)
    reader.commenters = ""
    reader.whitespace = ","
    reader.whitespace_split = True
    return list(reader)


@given(st.text(st.characters(blacklist_categories=["Cc", "Cs"])))
def test_a_value_stays_one_value(text):
    assert split(f"a={guest_argv.quoted(text)},b=1") == [f"a={text}", "b=1"]


@pytest.mark.parametrize("text", ["a\nb", "a\0b", "a\x7f", "\t"])
def test_control_characters_are_refused(text):
    with pytest.raises(ValueError, match="control character"):
        guest_argv.quoted(text)


def test_edits():
    steps = [("set", "./vcpu", "2"), ("create", "./a", ""), ("delete", "./b[1]", ""), ("set", "./x/@y", "a,b=c d")]
    assert guest_argv.edits(steps) == [
        "--xml", 'xpath.set=./vcpu,xpath.value="2"', "--xml", "xpath.create=./a", "--xml", "xpath.delete=./b[1]",
        "--xml", 'xpath.set=./x/@y,xpath.value="a,b=c d"',
    ]  # fmt: skip


@pytest.mark.parametrize("sign", '"&<>')
def test_what_virt_xml_escapes_twice_is_refused_in_attributes_alone(sign):
    with pytest.raises(ValueError, match="virt-xml cannot write"):
        guest_argv.edits([("set", "./x/@y", f"a{sign}b")])
    assert guest_argv.edits([("set", "./os/cmdline", f"a{sign}b")])


def after(argv, option):
    return argv[argv.index(option) + 1]


def test_a_new_guest():
    wanted = {
        "cpu": 1, "cpu maximum": 2, "mem": 524288, "mem maximum": 1048576, "graphics": "vnc on a unix socket",
        "description": 'a,b"c', "boot_dev": "network,hd", "loader": "uefi",
    }  # fmt: skip
    argv = guest_argv.install("srv01", wanted, HOST, [("set", "./a/@b", "c")])
    assert argv[0] == "virt-install"
    # Prints only; storage is made elsewhere, and no storage pool by the way.
    assert "--print-xml" in argv
    assert after(argv, "--disk") == "none"
    assert after(argv, "--vcpus") == "vcpus=1,maxvcpus=2"
    assert after(argv, "--memory") == "memory=512,maxmemory=1024"
    assert after(argv, "--machine") == "q35"
    assert after(argv, "--graphics") == "vnc,listens0.type=socket"
    assert after(argv, "--boot") == "uefi=on,network,hd"
    assert split(after(argv, "--metadata")) == ['description=a,b"c']
    assert argv[-2:] == ["--xml", 'xpath.set=./a/@b,xpath.value="c"']


def test_a_disk_on_scsi_brings_its_controller():
    disk = [("set", "./devices/disk[1]/target/@bus", "scsi")]
    assert "scsi,model=virtio-scsi" in guest_argv.install("srv01", {}, HOST, disk)
    assert "scsi,model=virtio-scsi" not in guest_argv.install("srv01", {}, HOST, [])


def test_a_new_guest_that_declares_nothing_has_no_display_and_logs_its_console():
    argv = guest_argv.install("srv01", {}, HOST, [])
    assert after(argv, "--graphics") == "none"
    assert after(argv, "--serial") == "pty,log.file=/var/log/libvirt/qemu/srv01-serial.log,log.append=on"
    assert "--boot" not in argv


def test_a_kernel_of_the_host():
    wanted = {"kernel": "/k,1", "initrd": "/i", "cmdline": 'console=ttyS0,115200 x="y"'}
    boot = after(guest_argv.install("srv01", wanted, HOST, []), "--boot")
    assert split(boot) == ["kernel=/k,1", "initrd=/i", 'kernel_args=console=ttyS0,115200 x="y"']


def test_kvm_where_libvirt_offers_it():
    with_kvm = CAPABILITIES.format(kvm="<domain type='kvm'/>")
    assert guest_argv.host_defaults(with_kvm, {})["type"] == "kvm"
    assert guest_argv.host_defaults(with_kvm, {"vm_type": "qemu"})["type"] == "qemu"
    assert guest_argv.host_defaults(CAPABILITIES.format(kvm=""), {}) == HOST


def test_other_architectures():
    found = guest_argv.host_defaults(CAPABILITIES.format(kvm=""), {"arch": "i686"})
    assert found == {"type": "qemu", "arch": "i686", "machine": None}


def test_what_the_host_does_not_run_is_refused():
    with pytest.raises(ValueError, match="runs x86_64 guests as qemu, not as kvm"):
        guest_argv.host_defaults(CAPABILITIES.format(kvm=""), {"vm_type": "kvm"})
    with pytest.raises(ValueError, match="no guests of the architecture s390x"):
        guest_argv.host_defaults(CAPABILITIES.format(kvm=""), {"arch": "s390x"})
