"""The lab itself: done again, interrupted, side by side, damaged, and gone without a trace."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import PLATFORM, end_guest

from lab import container, guest, machine, network, rootfs, salt, state
from lab.lab import DEMO, Lab, leftovers, processes_in
from lab.proc import LabError, run
from lab.state import CACHE, CHECKOUT, Paths

SMALL = ("--hosts", "controller", "--no-highstate")
# Waits until a minion is at a highstate that has begun since: it keeps a file for each job that it is at.
AT_WORK = """
until find /var/cache/salt/minion/proc -type f -newermt "$1" -exec grep -l state.highstate {} + | grep -q .; do
  sleep 0.1
done
"""


def command(*words):
    return [sys.executable, "-m", "lab.cli", *words]


def cli(*words, env=None):
    """Run the command line and return the finished process."""
    return subprocess.run(
        command(*words), capture_output=True, text=True, timeout=300, cwd=CHECKOUT, check=False, env=env
    )


@pytest.fixture
def spare():
    """The name of a lab of our own, which is gone afterwards whatever happened to it."""
    name = "spare"
    cli("down", "--name", name)
    yield name
    done = cli("down", "--name", name)
    assert done.returncode == 0, done.stderr


def clean_exit(done):
    """One sentence, no traceback, and a return code that says failed."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("lab: ")


def test_up_again_does_nothing_and_says_so(lab):
    # Further suites have the page on for themselves.
    first = cli("up", "--name", lab.paths.name, "--no-page")
    assert first.returncode == 0, first.stderr
    try:
        begun = time.monotonic()
        again = cli("up", "--name", lab.paths.name, "--no-page")
        assert again.returncode == 0, again.stderr
        assert "nothing to do" in again.stdout
        assert "salt '*' state.highstate (" not in again.stderr
        assert f"guests: {DEMO}" in again.stdout
        assert time.monotonic() - begun < 90
    finally:
        end_guest(lab, DEMO)


def test_up_works_after_a_host_was_stopped(lab):
    run([*container.PODMAN, "kill", container.container_name(lab.paths.name, "hv2")])
    done = cli("up", "--name", lab.paths.name, "--no-demo", "--no-page", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["did"] is True
    assert all(row["running"] for row in result["hosts"].values())


@pytest.mark.long
def test_two_labs_start_at_once_and_go_alone(lab, spare):
    before = machine.snapshot()
    names = (spare, "spare-2")
    try:
        commands = [command("up", "--name", name, *SMALL, "--json") for name in names]
        runs = [subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=CHECKOUT) for argv in commands]
        results = [json.loads(process.communicate(timeout=240)[0]) for process in runs]
        assert [process.returncode for process in runs] == [0, 0]
        networks = {result["network"] for result in results} | {lab.status()["network"]}
        assert len(networks) == 3
    finally:
        downs = {name: cli("down", "--name", name, "--json") for name in names}
    for name, down in downs.items():
        assert down.returncode == 0, down.stderr
        assert json.loads(down.stdout) == {"existed": True, "differences": []}
        assert leftovers(Paths(name), None) == []
        assert processes_in(network.switch(name)) == []
        assert not Paths(name).root.exists()
    assert machine.differences(before, machine.snapshot()) == []
    assert salt.answering(lab.hosts), "the other lab was disturbed"


def test_a_second_command_on_the_same_lab_is_refused(spare):
    with state.locked(f"lab-{spare}", "lab up"):
        done = cli("up", "--name", spare, *SMALL)
    clean_exit(done)
    assert "another command is at work" in done.stderr
    assert f"pid {os.getpid()}" in done.stderr


@pytest.mark.parametrize(("sent", "after"), [(signal.SIGINT, 1.5), (signal.SIGKILL, 4.0)])
@pytest.mark.long
def test_interrupted_and_run_again(spare, sent, after):
    # Whoever began the tests in the background may have them ignore an interrupt, and all that they start.
    argv = ["env", "--default-signal=INT", *command("up", "--name", spare, *SMALL)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT) as process:
        time.sleep(after)
        assert process.poll() is None, "it has ended before it could be interrupted"
        process.send_signal(sent)
        _, printed = process.communicate(timeout=60)
    if sent == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL, printed
    if sent == signal.SIGINT:
        assert process.returncode == 130, printed
        assert "run the same command again" in printed
        assert "Traceback" not in printed
    done = cli("up", "--name", spare, *SMALL)
    assert done.returncode == 0, done.stderr


def test_interrupted_between_making_a_host_and_its_identity(spare, monkeypatch):
    """The next run gives the identity to the host that was made without one."""

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(container, "give_identity", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Lab(spare).up(only=["controller"], highstate=False)
    assert container.existing(spare) == {"controller": "created"}
    done = cli("up", "--name", spare, *SMALL)
    assert done.returncode == 0, done.stderr


def test_a_lab_of_another_version_says_what_to_do(spare):
    paths = Paths(spare)
    paths.root.mkdir(parents=True)
    paths.state.write_text(json.dumps({"format": 0, "checkout": "/somewhere/else"}))
    for words in (("up", *SMALL), ("status",)):
        done = cli(words[0], "--name", spare, *words[1:])
        clean_exit(done)
        assert "/somewhere/else" in done.stderr
        assert f"lab down --name {spare}" in done.stderr
    done = cli("down", "--name", spare)
    assert done.returncode == 0, done.stderr
    assert not paths.root.exists()


def test_a_damaged_state_says_what_to_do(spare):
    paths = Paths(spare)
    paths.root.mkdir(parents=True)
    paths.state.write_text('{"format": 1, "hos')
    done = cli("status", "--name", spare)
    clean_exit(done)
    assert f"lab down --name {spare}" in done.stderr


def test_a_port_that_is_taken_is_named(lab):
    """Something else on 16514: the highstate fails and says so; once the port is free the next run heals it."""
    sockets = ["libvirtd-tls.socket", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket"]
    lab.run("hv2", ["systemctl", "stop", *sockets, "libvirtd"])
    lab.run("hv2", ["systemd-run", "--unit=squatter", "python3", "-m", "http.server", "16514"])
    try:
        lab.run("hv2", ["sh", "-c", "until ss -Hltn sport = :16514 | grep -q .; do sleep 0.1; done"])
        figures = salt.summary(salt.highstate(lab.hosts, ["hv2"])["hv2"])
        assert any("Port 16514 is in use by python3 (pid " in text for text in figures["failed"]), figures
    finally:
        lab.run("hv2", ["systemctl", "stop", "squatter"])
    salt.check_green(salt.highstate(lab.hosts, ["hv2"]))
    assert lab.run("hv1", ["virsh", "--connect", "qemu+tls://hv2/system", "list"]).returncode == 0


@pytest.mark.long
def test_a_master_killed_during_a_highstate(lab):
    """The run is lost, nothing else is: the master comes back by itself and the next run is green."""
    argv = [*lab.hosts.ssh_argv("controller"), "--", shlex.join(["salt", "*", "state.highstate"])]
    begun = time.time()
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        lab.run("hv1", ["sh", "-c", AT_WORK, "sh", f"@{begun:.3f}"], timeout=60)
        assert process.poll() is None, "the highstate is over already"
        lab.run("controller", ["systemctl", "kill", "--kill-whom=all", "--signal=KILL", "salt-master"])
        process.wait(timeout=180)
    lab.run("controller", ["sh", "-c", "until systemctl is-active --quiet salt-master; do sleep 0.2; done"], timeout=60)
    salt.wait_answering(lab.hosts)
    deadline = time.monotonic() + 120
    answers = salt.highstate(lab.hosts)
    while any(isinstance(answer, list) for answer in answers.values()) and time.monotonic() < deadline:
        # A minion may still be at the run that its master has forgotten.
        time.sleep(2)
        answers = salt.highstate(lab.hosts)
    salt.check_green(answers)


def test_hosts_cannot_change_the_machine(lab):
    before = Path("/proc/sys/vm/swappiness").read_text()
    for argv in (
        ["sysctl", "-w", "vm.swappiness=1"],
        ["sysctl", "-w", "kernel.panic=7"],
        ["sh", "-c", "echo 0 > /sys/kernel/mm/ksm/run"],
    ):
        assert lab.run("hv1", argv, check=False).returncode != 0, argv
    assert Path("/proc/sys/vm/swappiness").read_text() == before
    # What has a namespace is the host's own.
    assert lab.run("hv1", ["sysctl", "-w", "net.ipv4.ip_forward=1"]).returncode == 0


def test_half_built_guest_is_built_again(tmp_path, monkeypatch):
    monkeypatch.setattr(guest, "CACHE", tmp_path)
    half = tmp_path / f"guest-{guest.digest()}"
    half.mkdir()
    (half / guest.KERNEL).write_bytes(b"half")
    built = guest.build(tmp_path / "log")
    assert (built / guest.KERNEL).stat().st_size > 1_000_000
    assert (built / guest.INITRAMFS).stat().st_size > 500_000


def test_image_build_that_is_killed_leaves_nothing(tmp_path):
    """Neither mounts nor processes nor something that counts as an image."""
    target = tmp_path / "tree.tar"
    code = (
        "import sys; from pathlib import Path; from lab import rootfs; "
        "rootfs.build('bookworm', Path(sys.argv[1]), packages=['less'], log=Path(sys.argv[2]))"
    )
    mounts = len(Path("/proc/self/mountinfo").read_text().splitlines())
    with subprocess.Popen([sys.executable, "-c", code, str(target), str(tmp_path / "log")], cwd=CHECKOUT) as process:
        time.sleep(8)
        begun = building(tmp_path)
        assert process.poll() is None, "it has ended before it could be killed"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    # Something was there that could have been left.
    assert [words for words in begun if "mmdebstrap" in words], begun
    deadline = time.monotonic() + 20
    while (running := building(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert running == []
    assert not target.exists()
    assert len(Path("/proc/self/mountinfo").read_text().splitlines()) <= mounts
    assert "tree" not in "".join(container.images())


def building(folder):
    """Return the command lines of processes that have to do with a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().replace(bytes(1), b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words and int(entry.name) != os.getpid():
            found.append(words)
    return found


def test_a_full_disk_is_said_before_anything_is_built(tmp_path):
    run(["mount", "-t", "tmpfs", "-o", "size=20M", "tmpfs", tmp_path])
    try:
        with pytest.raises(LabError, match="MiB free; this step needs"):
            rootfs.build("bookworm", tmp_path / "tree.tar", packages=["less"], log=tmp_path / "log")
        assert list(tmp_path.iterdir()) == []
    finally:
        run(["umount", tmp_path])


def test_without_root_one_sentence():
    unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run(
        [*unprivileged, sys.executable, "-m", "lab.cli", "up", "--name", "nobody"],
        capture_output=True, text=True, timeout=60, cwd=CHECKOUT, check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "needs root" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_container_support_one_sentence(spare, tmp_path):
    for name in machine.PROGRAMS:
        if name != "podman":
            (tmp_path / name).symlink_to(run(["which", name]).stdout.strip())
    done = cli("up", "--name", spare, env={**os.environ, "PATH": str(tmp_path)})
    clean_exit(done)
    assert "podman" in done.stderr
    assert "lab deps" in done.stderr
    broken = tmp_path / "podman"
    broken.write_text("#!/bin/sh\necho 'Error: kernel does not support overlay' >&2\nexit 125\n")
    broken.chmod(0o755)
    done = cli("up", "--name", spare, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    clean_exit(done)
    assert "kernel does not support overlay" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--platform", "debian-99"), "debian-12, debian-13"),
        (("--kind", "cloud"), "container, vm"),
        (("--hosts", "controller,hv9"), "controller, hv1, hv2"),
        (("--hosts", "hv1"), "controller"),
    ],
)
def test_wrong_options_say_what_is_allowed(spare, words, said):
    done = cli("up", "--name", spare, *words)
    clean_exit(done)
    assert said in done.stderr
    assert not Paths(spare).root.exists()


def test_a_running_lab_does_not_change_its_kind(lab):
    other = next(name for name in lab.kitchen.platforms if name != PLATFORM)
    asked = {"--kind vm": "not vm", "--kind hv1=vm": "hv1 is container", f"--platform {other}": PLATFORM}
    for words, said in asked.items():
        done = cli("up", "--name", lab.paths.name, *words.split())
        clean_exit(done)
        assert said in done.stderr
        assert "lab down" in done.stderr


def test_down_without_a_lab_is_fine():
    done = cli("down", "--name", "never")
    assert done.returncode == 0
    assert "there was no lab" in done.stdout


def test_a_partial_archive_in_the_cache_is_no_image(lab):
    """What an interrupted build has left in the cache doesn't count; the digest-named image alone does."""
    partial = CACHE / ".bookworm-0123456789abcdef.tar.partial"
    partial.write_bytes(b"half")
    try:
        assert not container.image_exists(f"{container.REPOSITORY}:bookworm-0123456789abcdef")
        assert Lab(lab.paths.name).state["image"] in container.images()
    finally:
        partial.unlink()
