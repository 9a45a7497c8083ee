"""A host's key pair, what it hands in, whom it trusts, and what ssh and sshd are told of it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from _modules import host_keys as keeper
from _states import host_keys, host_ssh
from _utils import handed_in, own_files, ssh_keys

UTILS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": function
    for module in (handed_in, own_files, ssh_keys)
    for name, function in vars(module).items()
    if callable(function)
}
HOSTS = {host: {"addresses": [f"192.0.2.{number}"]} for number, host in ((11, "hv1"), (12, "hv2"), (13, "hv3"))}


class Host:
    """A host hv1 whose /etc/ssh and whose master's file server are folders."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.ssh, self.served = folder / "ssh", folder / "served"
        for path in (self.ssh, self.served):
            path.mkdir()
        self.ours = self.ssh / "hypervisor"
        self.key = str(self.ours / "id_ed25519")
        self.opts: dict[str, Any] = {"test": False, "id": "hv1", "file_client": "remote"}
        self.pillar: dict[str, Any] = {}
        self.asked: list[Any] = []
        self.caller = "hv1"
        salt = {"cp.cache_file": self.fetch, "publish.publish": self.publish}
        for module in (host_keys, host_ssh):
            monkeypatch.setattr(module, "__opts__", self.opts, raising=False)
            monkeypatch.setattr(module, "__utils__", UTILS, raising=False)
            monkeypatch.setattr(module, "_SSH", self.ssh)
        monkeypatch.setattr(host_keys, "__salt__", salt, raising=False)
        monkeypatch.setattr(host_keys, "__pillar__", self.pillar, raising=False)
        monkeypatch.setattr(keeper, "__utils__", UTILS, raising=False)
        monkeypatch.setattr(keeper, "FOLDER", self.served)
        monkeypatch.setattr("time.sleep", lambda _: None)

    def fetch(self, url: str) -> str:
        path = self.served / url.removeprefix("salt://hypervisor-hostkeys/")
        return str(path) if path.exists() else ""

    def publish(self, target: str, function: str, arg: list[Any], timeout: int) -> dict[str, Any]:
        assert (target, function) == ("controller", "host_keys.deposit")
        assert timeout > 0
        self.asked.append(arg)
        return {target: keeper.deposit(*arg, __pub_id=self.caller)} if self.caller else {}

    def server(self) -> None:
        """Let there be host keys, as an ssh server makes them."""
        (self.ssh / "ssh_host_ed25519_key.pub").write_text(host_keys.public_half(host_keys.new_private()) + " root@x\n")

    def other(self, name: str) -> None:
        """Let another host have handed in its keys."""
        keys = [host_keys.public_half(host_keys.new_private()) for _ in range(2)]
        (self.served / f"{name}.json").write_text(json.dumps({"user": keys[0], "host": [keys[1]]}))

    def files(self) -> dict[str, tuple[bytes, int]]:
        paths = [path for path in (*self.ssh.rglob("*"), *self.served.rglob("*")) if path.is_file()]
        return {str(path): (path.read_bytes(), path.stat().st_mode) for path in paths}


@pytest.fixture(name="host")
def fresh_host(monkeypatch, tmp_path) -> Host:
    return Host(monkeypatch, tmp_path)


# ---- the pair ----


def test_a_pair_is_made_once(host):
    ret = host_keys.pair(host.key)
    assert (ret["result"], set(ret["changes"])) == (True, {"private", "public"})
    assert stat.S_IMODE(os.stat(host.key).st_mode) == 0o400  # noqa: PTH116
    public = Path(f"{host.key}.pub").read_text(encoding="ascii")
    assert public == f"{host_keys.public_half(Path(host.key).read_bytes())} hv1\n"
    before = host.files()
    assert host_keys.pair(host.key)["changes"] == {}
    assert host.files() == before


def test_a_pair_is_predicted_and_not_made(host):
    host.opts["test"] = True
    ret = host_keys.pair(host.key)
    assert (ret["result"], set(ret["changes"])) == (None, {"private", "public"})
    assert host.files() == {}


@pytest.mark.parametrize(
    ("mode", "new", "changed"),
    [(0o400, False, set()), (0o600, False, {"private"}), (0o440, True, {"private", "public"}),
     (0o604, True, {"private", "public"})],
)  # fmt: skip
def test_a_key_that_others_could_read_is_replaced(host, mode, new, changed):
    host_keys.pair(host.key)
    before = Path(host.key).read_bytes()
    Path(host.key).chmod(mode)
    ret = host_keys.pair(host.key)
    assert set(ret["changes"]) == changed
    assert (Path(host.key).read_bytes() != before) is new
    assert stat.S_IMODE(Path(host.key).stat().st_mode) == 0o400


def test_a_key_that_cannot_be_read_is_replaced(host):
    host_keys.pair(host.key)
    Path(host.key).chmod(0o600)
    Path(host.key).write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", encoding="ascii")
    assert set(host_keys.pair(host.key)["changes"]) == {"private", "public"}
    assert host_keys.public_half(Path(host.key).read_bytes())


def test_the_key_of_pillar_is_taken_and_never_shown(host):
    given = host_keys.new_private().decode()
    host.pillar["kvm"] = {"hostkeys": {"private_key": given}}
    ret = host_keys.pair(host.key, "kvm:hostkeys:private_key")
    assert ret["changes"]["private"] == "taken from pillar"
    assert Path(host.key).read_text(encoding="ascii") == given
    assert given.splitlines()[2] not in str(ret)
    assert host_keys.pair(host.key, "kvm:hostkeys:private_key")["changes"] == {}
    # It cannot be replaced here, so it is closed and a person is told.
    Path(host.key).chmod(0o444)
    ret = host_keys.pair(host.key, "kvm:hostkeys:private_key")
    assert set(ret["changes"]) == {"private"}
    assert "put a new key into kvm:hostkeys:private_key" in ret["warnings"][0]


def test_a_key_of_pillar_that_is_none_changes_nothing(host):
    host_keys.pair(host.key)
    before = host.files()
    host.pillar["kvm"] = {"hostkeys": {"private_key": "-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n"}}
    ret = host_keys.pair(host.key, "kvm:hostkeys:private_key")
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "kvm:hostkeys:private_key: it is no private key" in ret["comment"]
    assert "secret" not in ret["comment"]
    assert host.files() == before


# ---- through the master ----


def test_public_halves_are_handed_in_once(host):
    host.server()
    host_keys.pair(host.key)
    ret = host_keys.published(host.key, "controller")
    assert (ret["result"], list(ret["changes"])) == (True, ["published"])
    entry = json.loads((host.served / "hv1.json").read_text())
    assert entry["user"] == host_keys.public_half(Path(host.key).read_bytes())
    assert host_keys.published(host.key, "controller")["changes"] == {}
    assert len(host.asked) == 1


def test_handing_in_is_predicted(host):
    host.opts["test"] = True
    assert host_keys.published(host.key, "controller")["result"] is None
    host.opts["test"] = False
    assert host_keys.published(host.key, "controller")["result"] is False
    host_keys.pair(host.key)
    assert "is the ssh server installed" in host_keys.published(host.key, "controller")["comment"]
    host.server()
    host.opts["test"] = True
    assert list(host_keys.published(host.key, "controller")["changes"]) == ["published"]
    assert host.asked == []


@pytest.mark.parametrize(
    ("caller", "said"),
    [("", "the master does not let this host ask it"), (None, "could not be identified"), ("hv2", "'stored': 'hv2'")],
)
def test_an_answer_alone_is_not_believed(host, caller, said):
    """What counts is what the file server has of this host afterwards."""
    host.server()
    host_keys.pair(host.key)
    host.caller = caller
    if caller is None:
        host.publish = None
        host_keys.__salt__["publish.publish"] = lambda *_, arg, timeout: {"controller": keeper.deposit(*arg)}
    ret = host_keys.published(host.key, "controller", wait_seconds=0)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert "controller has not published it within 0 s" in ret["comment"]
    assert said in ret["comment"]


def test_a_keeper_without_the_function_is_told_what_it_lacks(host):
    host.server()
    host_keys.pair(host.key)
    host_keys.__salt__["publish.publish"] = lambda *_, **__: {"controller": "'host_keys.deposit' is not available."}
    comment = host_keys.published(host.key, "controller", wait_seconds=0)["comment"]
    assert "salt controller saltutil.sync_all" in comment


def test_the_keeper_refuses_what_is_no_key_and_where_it_keeps_none(host, monkeypatch):
    good = host_keys.public_half(host_keys.new_private())
    assert "refused" in keeper.deposit(good, [good + "\nevil"], __pub_id="hv1")["error"]
    assert "could not be identified" in keeper.deposit(good, [good], __pub_id="../../etc/x")["error"]
    assert list(host.served.iterdir()) == []
    monkeypatch.setattr(keeper, "FOLDER", host.served / "none")
    assert "bootstrap pki" in keeper.deposit(good, [good], __pub_id="hv1")["error"]


def test_the_listed_hosts_are_trusted(host):
    for name in ("hv2", "hv3"):
        host.other(name)
    host.opts["test"] = True
    predicted = host_keys.trusted(str(host.ours), HOSTS)
    assert predicted["result"] is None
    assert not host.ours.exists()
    host.opts["test"] = False
    ret = host_keys.trusted(str(host.ours), HOSTS)
    assert (ret["result"], ret["changes"]) == (True, predicted["changes"])
    assert host_keys.trusted(str(host.ours), HOSTS)["changes"] == {}
    fewer = {name: where for name, where in HOSTS.items() if name != "hv3"}
    ret = host_keys.trusted(str(host.ours), fewer)
    removed = [line for change in ret["changes"].values() for line in change["removed"]]
    assert removed != []
    assert all("hv3" in line for line in removed)
    assert not [path.name for path in host.ours.iterdir() if "hv3" in path.read_text()]
    assert host_keys.trusted(str(host.ours), {"hv2": HOSTS["hv2"]})["result"] is True
    assert "hv2" not in (host.ours / "authorized_keys").read_text(), "a host that is not listed trusts nobody"


def test_who_is_missing_is_named_and_the_others_are_trusted(host):
    host.other("hv2")
    ret = host_keys.trusted(str(host.ours), HOSTS, wait_seconds=0)
    assert ret["result"] is False
    assert "no key within 0 s: hv3" in ret["comment"]
    assert "hv2" in (host.ours / "authorized_keys").read_text()
    (host.served / "hv2.json").write_text("{}")
    ret = host_keys.trusted(str(host.ours), HOSTS, wait_seconds=0)
    assert ret["changes"] == {}, "what stood there stays while the host is listed"


def test_a_list_that_makes_no_sense_changes_nothing(host, tools):
    for state in (host_keys.trusted, host_ssh.configured):
        ret = state(str(host.ours), {"hv1": {}, "hv2": {"addresses": ["any"]}})
        assert (ret["result"], ret["changes"]) == (False, {})
        assert "Nothing has changed: hosts:hv1:addresses: at least one" in ret["comment"]
    assert host.files() == {}


def test_nobody_to_trust_leaves_no_trace(host):
    assert host_keys.trusted(str(host.ours), {})["changes"] == {}
    assert host.files() == {}


# ---- ssh and sshd ----


class Tools:
    """ssh, sshd and systemctl, which see the files of the host."""

    def __init__(self, monkeypatch, host: Host) -> None:
        self.host, self.root = host, "prohibit-password"
        self.calls: list[str] = []
        self.refuses, self.include, self.active = False, True, True
        monkeypatch.setattr(host_ssh, "_run", self.run)
        monkeypatch.setattr(host_ssh, "_LOADED", host.ssh.parent / "run" / "loaded")
        monkeypatch.setattr("salt.utils.path.which", lambda name: f"/usr/bin/{name}")

    def run(self, *argv: str) -> str:
        drop_in = self.host.ssh / "sshd_config.d" / "10-hypervisor.conf"
        if argv[:2] == ("sshd", "-t") and self.refuses and drop_in.exists():
            raise RuntimeError("sshd -t failed: bad line 3")
        if argv[:2] == ("systemctl", "show"):
            return f"ActiveState={'active' if self.active else 'inactive'}\nActiveEnterTimestampMonotonic=1000000\n"
        if argv[:2] == ("systemctl", "reload"):
            self.calls.append(argv[2])
        if argv[:2] == ("ssh", "-G"):
            return f"userknownhostsfile {self.host.ours / 'known_hosts' if self.include else 'x'}\n"
        keys = f"authorizedkeysfile .ssh/authorized_keys {self.host.ours / 'authorized_keys'}\n"
        return keys + f"permitrootlogin {self.root}\n"


@pytest.fixture(name="tools")
def fresh_tools(monkeypatch, host) -> Tools:
    return Tools(monkeypatch, host)


def test_ssh_and_sshd_are_told_once(host, tools):
    host.opts["test"] = True
    predicted = host_ssh.configured(str(host.ours), HOSTS)
    assert (predicted["result"], host.files()) == (None, {})
    host.opts["test"] = False
    ret = host_ssh.configured(str(host.ours), HOSTS)
    assert (ret["result"], ret["changes"]) == (True, predicted["changes"])
    assert tools.calls == ["ssh.service"]
    assert host_ssh.configured(str(host.ours), HOSTS)["changes"] == {}
    # An empty list takes both files away, and sshd hears of it.
    assert "removed" in host_ssh.configured(str(host.ours), {})["changes"].values()
    assert host.files() == {}
    assert len(tools.calls) == 2


def test_a_reload_that_an_interrupted_run_left_out_is_made_up_for(host, tools):
    host_ssh.configured(str(host.ours), HOSTS)
    host_ssh._LOADED.unlink()
    assert list(host_ssh.configured(str(host.ours), HOSTS)["changes"]) == ["ssh.service"]


def test_without_a_running_sshd_nothing_is_reloaded(host, tools):
    tools.active = False
    assert len(host_ssh.configured(str(host.ours), HOSTS)["changes"]) == 2
    assert tools.calls == []


def test_what_sshd_refuses_is_taken_back(host, tools):
    tools.refuses = True
    ret = host_ssh.configured(str(host.ours), HOSTS)
    assert ret["result"] is False
    assert ret["changes"] == {}
    assert "Nothing has changed: sshd -t failed: bad line 3" in ret["comment"]
    assert host.files() == {}
    assert tools.calls == []


@pytest.mark.parametrize(("fault", "said"), [("include", "ssh_config.d/*.conf"), ("root", "PermitRootLogin no")])
def test_what_stands_in_the_way_is_said_at_every_run(host, tools, fault, said):
    setattr(tools, fault, False if fault == "include" else "no")
    for _ in range(2):
        ret = host_ssh.configured(str(host.ours), HOSTS)
        assert ret["result"] is False
        assert said in ret["comment"]


@pytest.mark.parametrize(("test", "result"), [(True, None), (False, False)])
def test_without_an_ssh_server(host, tools, monkeypatch, test, result):
    monkeypatch.setattr("salt.utils.path.which", lambda name: None)
    host.opts["test"] = test
    ret = host_ssh.configured(str(host.ours), HOSTS)
    assert (ret["result"], bool(ret["changes"])) == (result, test)
