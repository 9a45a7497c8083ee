"""A host after kvm/: QEMU and libvirt are there, and its settings are in force."""

from xml.etree import ElementTree as ET

import pytest

QEMU_CONF = "/etc/libvirt/qemu.conf"
IMAGES = "/var/lib/libvirt/images"
# No disk, never continued: enough to see what QEMU was started with.
GUEST = """
<domain type='{kind}'>
  <name>kitchen-settings</name>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64'>hvm</type></os>
  <devices><graphics type='vnc'/></devices>
</domain>
"""


def checked(host, *argv):
    """Run a program on the host and return its output; argv items are quoted here."""
    done = host.run(" ".join(["%s"] * len(argv)), *argv)
    assert done.rc == 0, f"{argv}: {done.stderr or done.stdout}"
    return done.stdout


def parsed(xml):
    """Return the root element of what libvirt printed."""
    return ET.fromstring(xml)  # noqa: S314  our own host's libvirt wrote it


def settings(host, path):
    """Return a libvirt file's keys with the text of their values."""
    lines = host.file(path).content_string.splitlines()
    pairs = (line.split("=", 1) for line in lines if line.strip() and not line.startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs}


@pytest.fixture(name="kind")
def domain_kind(host):
    """The best kind of guest that libvirt offers here: kvm, else qemu."""
    root = parsed(checked(host, "virsh", "-c", "qemu:///system", "capabilities"))
    kinds = {
        domain.get("type")
        for guest in root.findall("guest")
        for arch in guest.findall("arch[@name='x86_64']")
        for domain in arch.findall("domain")
    }
    assert kinds & {"kvm", "qemu"}, f"libvirt offers no QEMU guest here: {kinds}"
    return "kvm" if "kvm" in kinds else "qemu"


@pytest.mark.parametrize("program", ["qemu-img", "virsh", "virt-install"])
def test_programs(host, program):
    assert host.exists(program)
    checked(host, program, "--version")


def test_qemu_conf_holds_the_pillar_and_nothing_else(host):
    file = host.file(QEMU_CONF)
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)
    # Neither the suite's pillar nor the lab's has a word of its own: these are the formula's defaults.
    assert settings(host, QEMU_CONF) == {
        "vnc_auto_unix_socket": "1",
        "migrate_tls_force": "1",
        "migrate_tls_x509_verify": "1",
    }


def test_libvirt_reads_qemu_conf(host):
    # The parser of libvirt's own tools takes the file as it is.
    assert settings(host, QEMU_CONF)
    checked(host, "virsh", "-c", "qemu:///system", "version", "--daemon")


def test_qemu_conf_is_in_force(host, kind):
    """A VNC display without an address becomes a unix socket, not a port."""
    path = "/run/kitchen-settings.xml"
    checked(host, "sh", "-c", 'printf "%s" "$1" > "$2"', "sh", GUEST.format(kind=kind), path)
    virsh = ("virsh", "-c", "qemu:///system")
    try:
        checked(host, *virsh, "create", "--paused", path)
        root = parsed(checked(host, *virsh, "dumpxml", "kitchen-settings"))
        graphics = root.find("devices/graphics")
        assert graphics.get("socket"), ET.tostring(graphics, encoding="unicode")
        assert graphics.get("port") in (None, "-1")
        assert host.file(graphics.get("socket")).is_socket
    finally:
        host.run("virsh -c qemu:///system destroy kitchen-settings")
        host.run("rm -f %s", path)


def test_image_folder(host):
    folder = host.file(IMAGES)
    assert folder.is_directory
    assert (folder.user, folder.group, folder.mode) == ("root", "root", 0o711)
