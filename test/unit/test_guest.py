"""The demonstration guest: the command that starts it, and what makes it be built again."""

import subprocess

import pytest

from lab import bootmedia, guest


def option(argv, name):
    return argv[argv.index(name) + 1]


def test_the_command_names_what_the_guest_is_made_of():
    argv = guest.install_argv("demo", 96)
    assert argv[0] == "virt-install"
    assert option(argv, "--name") == "demo"
    assert option(argv, "--memory") == "96"
    assert option(argv, "--connect") == "qemu:///system"
    boot = dict(part.split("=", 1) for part in option(argv, "--boot").split(","))
    assert boot["kernel"] == "/var/lib/libvirt/images/lab-guest-vmlinuz"
    assert boot["initrd"] == "/var/lib/libvirt/images/lab-guest-initramfs"
    assert boot["kernel_args"] == "console=ttyS0 no_timer_check"
    # The console's log is how tests see that a guest goes on and isn't restarted; a migration must not empty it.
    assert option(argv, "--serial") == "pty,log.file=/var/log/libvirt/qemu/demo-serial.log,log.append=on"
    assert "--noautoconsole" in argv
    for device in ("--disk", "--network", "--graphics", "--memballoon"):
        assert option(argv, device) == "none"
    assert all(isinstance(word, str) for word in argv)


def test_its_init_can_be_parsed():
    done = subprocess.run(["sh", "-n"], input=guest.INIT, text=True, capture_output=True, timeout=10, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_guest_in_the_cache_is_not_built_again(tmp_path, monkeypatch):
    monkeypatch.setattr(guest, "CACHE", tmp_path)
    folder = tmp_path / f"guest-{guest.digest()}"
    folder.mkdir()
    (folder / guest.INITRAMFS).touch()
    monkeypatch.setattr(guest, "run", lambda *_, **__: pytest.fail("something was run"))
    assert guest.build(tmp_path / "log") == folder


def test_media_in_the_cache_are_not_built_again(tmp_path, monkeypatch):
    monkeypatch.setattr(bootmedia, "CACHE", tmp_path)
    folder = tmp_path / f"bootmedia-{bootmedia.digest()}"
    folder.mkdir()
    (folder / bootmedia.CD).touch()
    monkeypatch.setattr(bootmedia, "run", lambda *_, **__: pytest.fail("something was run"))
    assert bootmedia.build(tmp_path / "log") == folder


def test_media_are_built_again_with_another_guest(monkeypatch):
    before = bootmedia.digest()
    monkeypatch.setattr(guest, "digest", lambda: "another")
    assert bootmedia.digest() != before
