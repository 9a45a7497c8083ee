"""A wrong pillar ends the run before anything changes, and says where, what, and what is allowed."""

import pytest
from support import changed, digest

from lab import salt

# Pillar over hv1's own → texts that the refusal must contain.
BROKEN = {
    "unknown key": ({"kvm": {"hugepage": {"2M": 4}}}, ["kvm:hugepage", 'did you mean "hugepages"']),
    "unknown key below": ({"libvirt": {"tls": {"enable": True}}}, ["libvirt:tls:enable", 'did you mean "enabled"']),
    "wrong type": ({"kvm": {"kernel": {"manage": "never"}}}, ["kvm:kernel:manage", "never", "true"]),
    "mapping expected": ({"libvirt": {"tls": "yes please"}}, ["libvirt:tls", "yes please", "mapping"]),
    "out of range": ({"libvirt": {"pki": {"days_remaining": 4000}}}, ["libvirt:pki:days_remaining", "4000", "365"]),
    "negative": ({"libvirt": {"pki": {"wait_seconds": -1}}}, ["libvirt:pki:wait_seconds", "-1", "600"]),
    "misspelt enum": ({"libvirt": {"pki": {"key_type": "rsaa"}}}, ["libvirt:pki:key_type", "rsaa", "ec, rsa"]),
    "bad path": ({"kvm": {"images": {"path": "images/here"}}}, ["kvm:images:path", "images/here", "absolute path"]),
    "bad mode": ({"kvm": {"images": {"mode": 711}}}, ["kvm:images:mode", "711"]),
    "bad id": (
        {"libvirt": {"tls": {"allowed_hosts": ["hv1", "hv 2"]}}},
        ["libvirt:tls:allowed_hosts:1", "hv 2", "minion id"],
    ),
    "list expected": ({"kvm": {"packages": {"extra": "tmux"}}}, ["kvm:packages:extra", "tmux", "list"]),
    "two formulas, three errors": (
        {"kvm": {"sysctls": {}, "images": {"mode": "9999"}}, "libvirt": {"pki": {"key_type": "dsa"}}},
        ["kvm:sysctls", "kvm:images:mode", "9999", "libvirt:pki:key_type", "dsa"],
    ),
}


@pytest.fixture
def pillar(lab):
    """A function that lays a pillar over hv1's own; the lab's pillar comes back afterwards."""

    def lay(over):
        text = salt.pillar_files(lab.hosts)["hv1.sls"]
        salt.merge_pillar(lab.hosts, {"hv1.sls": salt.merged_yaml(text, over)})

    yield lay
    salt.merge_pillar(lab.hosts, salt.pillar_files(lab.hosts))


@pytest.mark.parametrize("case", BROKEN)
def test_refused_by_name_with_nothing_changed(lab, pillar, case):
    over, wanted = BROKEN[case]
    pillar(over)
    before = digest(lab, "hv1")
    done = lab.run("controller", ["salt", "hv1", "state.highstate"], check=False)
    printed = done.stdout + done.stderr
    assert done.returncode != 0
    for text in wanted:
        assert text in printed, f"{text!r} is not in: {printed}"
    assert "Traceback" not in printed
    assert "Succeeded" not in printed, "states were run"
    assert changed(before, digest(lab, "hv1")) == {}


def test_each_error_is_said_once(lab, pillar):
    pillar({"kvm": {"hugepage": {}}})
    printed = lab.run("controller", ["salt", "hv1", "state.highstate"], check=False).stdout
    # kvm/ has several SLS that all ask for the configuration, and libvirt/ includes some of them.
    assert printed.count("kvm:hugepage:") == 1, printed


def test_salt_call_local_refuses_too(lab):
    """Masterless: the same configuration, the same refusal."""
    lab.run("controller", ["mkdir", "-p", "/run/local-pillar"])
    argv = [
        "salt-call", "--local", "--file-root=/srv/formula", "--pillar-root=/run/local-pillar", "--retcode-passthrough",
        "--config-dir=/run/local-config",
    ]  # fmt: skip
    lab.run("controller", ["mkdir", "-p", "/run/local-config"])
    write = {
        "/run/local-config/minion": "root_dir: /run/local-root\nid: hv9\n",
        "/run/local-pillar/top.sls": "base: {'*': [host]}\n",
        "/run/local-pillar/host.sls": "kvm: {hugepage: 1, images: {mode: '1'}}\n",
    }
    lab.hosts.unpack("controller", {path: (0o644, text.encode()) for path, text in write.items()})
    lab.run("controller", [*argv, "saltutil.sync_all"])
    done = lab.run("controller", [*argv, "state.show_low_sls", "kvm"], check=False)
    printed = done.stdout + done.stderr
    assert done.returncode != 0
    assert "kvm:hugepage" in printed
    assert "kvm:images:mode" in printed
    assert "Traceback" not in printed
    lab.hosts.unpack("controller", {"/run/local-pillar/host.sls": (0o644, b"kvm: {images: {mode: '0750'}}\n")})
    done = lab.run("controller", [*argv, "state.show_low_sls", "kvm"])
    assert "0750" in done.stdout
    lab.run("controller", ["rm", "-rf", "/run/local-pillar", "/run/local-config", "/run/local-root"])


def test_salt_ssh_has_the_same_configuration(lab, pillar):
    """Over ssh the master renders: formula.config comes from _wrapper there."""
    folder = "/run/salt-ssh"
    key = lab.paths.ssh_key.read_bytes()
    known = (lab.paths.root / "known_hosts").read_bytes()
    roster = f"hv1:\n  host: {lab.hosts.addresses['hv1']}\n  user: root\n  priv: {folder}/key\n"
    lab.run("controller", ["mkdir", "-m", "0700", "-p", folder])
    write = {"key": key, "known_hosts": known, "roster": roster.encode()}
    lab.hosts.unpack("controller", {f"{folder}/{name}": (0o600, data) for name, data in write.items()})
    argv = ["salt-ssh", f"--roster-file={folder}/roster"]
    argv += ["--ssh-option", f"UserKnownHostsFile={folder}/known_hosts", "hv1"]
    try:
        lab.run("controller", ["salt-run", "saltutil.sync_all"])
        done = lab.run("controller", [*argv, "--out=json", "state.show_low_sls", "kvm"], timeout=180)
        assert "kvm_packages" in done.stdout
        pillar({"kvm": {"hugepage": 1}})
        before = digest(lab, "hv1")
        done = lab.run("controller", [*argv, "state.apply", "kvm"], check=False, timeout=180)
        printed = done.stdout + done.stderr
        assert done.returncode != 0
        assert "kvm:hugepage" in printed
        assert "Traceback" not in printed
        assert changed(before, digest(lab, "hv1")) == {}
    finally:
        lab.run("controller", ["rm", "-rf", folder])
