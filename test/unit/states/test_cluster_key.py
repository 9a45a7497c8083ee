"""The cluster's key: made once, handed to exactly the nodes, never to anybody else and never shown."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from _modules import cluster_key as keeper
from _states import cluster_key
from _utils import cluster_keys, cluster_rules, handed_in, own_files

SOURCE = "salt://hypervisor-cluster"
SITE = bytes(range(256))
MADE = cluster_keys.new_private  # before a fixture replaces it


class Site:
    """Hosts with a folder each, and a master whose file server is a folder."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.folder, self.served = folder, folder / "served"
        self.served.mkdir()
        self.opts: dict[str, Any] = {"test": False, "id": "hv1", "file_client": "remote"}
        self.pillar: dict[str, Any] = {}
        self.asked: list[Any] = []
        self.returned: list[Any] = []
        self.silent = self.running = False
        self.clock = 0.0
        self.later: list[Any] = []
        utils = {
            f"{module.__name__.rpartition('.')[2]}.{name}": function
            for module in (cluster_keys, cluster_rules, handed_in, own_files)
            for name, function in vars(module).items()
            if callable(function)
        }
        utils["cluster_tools.active"] = lambda unit: self.running and unit == "corosync.service"
        monkeypatch.setattr(cluster_key, "__opts__", self.opts, raising=False)
        monkeypatch.setattr(cluster_key, "__pillar__", self.pillar, raising=False)
        monkeypatch.setattr(cluster_key, "__utils__", utils, raising=False)
        salt = {"cp.cache_file": self.fetch, "publish.publish": self.publish}
        monkeypatch.setattr(cluster_key, "__salt__", salt, raising=False)
        monkeypatch.setattr(keeper, "__utils__", utils, raising=False)
        monkeypatch.setattr(keeper, "FOLDER", self.served)
        monkeypatch.setattr("time.sleep", self.sleep)
        monkeypatch.setattr("time.monotonic", lambda: self.clock)

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        if self.later:
            self.later.pop(0)()

    def fetch(self, url: str) -> str:
        path = self.served / url.removeprefix(f"{SOURCE}/")
        return str(path) if path.exists() else ""

    def publish(self, target: str, function: str, arg: list[Any], timeout: int) -> dict[str, Any]:
        assert (target, function) == ("master", "cluster_key.deposit")
        assert timeout > 0
        self.asked.append(json.dumps(arg))
        return {} if self.silent else {target: keeper.deposit(*arg, __pub_id=self.opts["id"])}

    def on(self, host: str, *, test: bool = False) -> None:
        """Go on as another host."""
        self.opts.update({"id": host, "test": test})

    def path(self, name: str) -> Path:
        return self.folder / str(self.opts["id"]) / name

    def published(self) -> dict[str, Any]:
        return cluster_key.published(str(self.path("private.pem")), "master", SOURCE, 10)

    def present(self, bootstrap: str = "hv1") -> dict[str, Any]:
        private = str(self.path("private.pem"))
        return cluster_key.present(
            str(self.path("authkey")), "c", bootstrap, private, SOURCE, "cluster:keys:corosync", 10
        )

    def handed_out(self, *nodes: str) -> dict[str, Any]:
        return cluster_key.handed_out(
            str(self.path("authkey")), "c", list(nodes), str(self.path("private.pem")), "master", SOURCE, 10
        )

    def key(self, host: str) -> bytes:
        return (self.folder / host / "authkey").read_bytes()


@pytest.fixture(scope="module", name="privates")
def a_few_private_keys():
    """Private keys, which take a while to make."""
    return [MADE() for _ in range(4)]


@pytest.fixture(name="site")
def fresh_site(monkeypatch, tmp_path, privates) -> Site:
    keys = iter(privates)
    monkeypatch.setattr(cluster_keys, "new_private", lambda: next(keys))
    return Site(monkeypatch, tmp_path)


@pytest.fixture(name="made")
def two_nodes_with_a_key(site):
    """hv1 has made the key and handed it to hv2."""
    site.on("hv2")
    site.returned.append(site.published())
    site.on("hv1")
    site.returned += [site.published(), site.present(), site.handed_out("hv2")]
    site.on("hv2")
    site.returned.append(site.present())
    assert [ret for ret in site.returned if ret["result"] is not True] == []
    assert site.returned[2]["changes"] != {} != site.returned[4]["changes"]
    return site


def test_every_node_gets_the_same_key_for_root_alone(made):
    assert made.key("hv1") == made.key("hv2")
    assert len(made.key("hv1")) == 256
    for host in ("hv1", "hv2"):
        for name in ("authkey", "private.pem"):
            assert stat.S_IMODE((made.folder / host / name).stat().st_mode) == 0o400


def test_the_key_is_in_nothing_that_was_sent_served_or_returned(made):
    key = made.key("hv1")
    words = [key.hex(), base64.b64encode(key).decode(), repr(key)[2:60], key.decode("latin-1")]
    made.on("hv1")
    returned = [*made.returned, made.published(), made.present(), made.handed_out("hv2")]
    texts = [*made.asked, *(path.read_text() for path in made.served.iterdir()), repr(returned)]
    assert not [word for word in words for text in texts if word in text]


def test_a_second_run_is_silent_and_asks_nobody(made):
    asked = len(made.asked)
    for host in ("hv1", "hv2"):
        made.on(host)
        answers = [made.published(), made.present()] + ([made.handed_out("hv2")] if host == "hv1" else [])
        assert [(ret["result"], ret["changes"]) for ret in answers] == [(True, {})] * len(answers)
    assert len(made.asked) == asked


def test_a_prediction_says_what_follows_and_touches_nothing(site):
    site.on("hv1", test=True)
    answers = [site.published(), site.present(), site.handed_out("hv2")]
    assert [ret["result"] for ret in answers] == [None] * 3
    assert [set(ret["changes"]) for ret in answers] == [{"private", "public"}, {"key"}, {"sealed for"}]
    site.on("hv2", test=True)
    ret = site.present()
    assert (ret["result"], ret["changes"]) == (None, {"key": "to come from hv1"})
    assert not (site.folder / "hv1").exists()
    assert site.asked == []


def test_a_node_that_is_too_early_names_the_bootstrap_node_and_goes_on_next_time(site):
    site.on("hv2")
    assert site.published()["result"] is True
    ret = site.present()
    assert ret["result"] is False
    assert "hv1 (cluster:bootstrap_node) has not handed out the cluster's key to hv2 within 10 s" in ret["comment"]
    assert not site.path("authkey").exists()
    site.on("hv1")
    site.published()
    site.present()
    site.handed_out("hv2")
    site.on("hv2")
    assert site.present()["result"] is True


def test_the_bootstrap_node_names_who_is_missing_and_serves_the_others(made):
    made.on("hv1")
    ret = made.handed_out("hv2", "hv3", "hv4")
    assert ret["result"] is False
    assert "These nodes have handed in no public key within 10 s: hv3, hv4. Run their highstate" in ret["comment"]
    made.on("hv2")
    assert made.present()["changes"] == {}


def test_a_node_that_comes_while_it_is_waited_for_gets_its_key(made):
    def comes():
        made.on("hv3")
        made.published()
        made.on("hv1")

    made.on("hv1")
    made.later = [comes]
    ret = made.handed_out("hv2", "hv3")
    assert (ret["result"], ret["changes"]) == (True, {"sealed for": ["hv3"]})
    made.on("hv3")
    assert made.present()["result"] is True
    assert made.key("hv3") == made.key("hv1")


def test_a_node_that_has_left_can_take_no_key_any_more(made):
    made.on("hv1")
    ret = made.handed_out()
    assert ret["changes"] == {"withdrawn from": ["hv2"]}
    assert json.loads((made.served / "hv1.json").read_text())["sealed"] == {}


def test_what_another_host_hands_in_is_no_key(made):
    """A node believes the bootstrap node alone: hv3 cannot give hv2 a key."""
    made.on("hv3")
    made.published()
    made.path("authkey").write_bytes(b"x" * 256)
    assert made.handed_out("hv2")["result"] is True
    made.on("hv2")
    key = made.key("hv2")
    made.path("authkey").unlink()
    assert made.present()["result"] is True
    assert made.key("hv2") == key


def test_a_reinstalled_node_gets_its_key_again(made, privates):
    made.on("hv2")
    for path in (made.path("authkey"), made.path("private.pem")):
        path.unlink()
    assert made.published()["result"] is True
    made.on("hv1")
    assert made.handed_out("hv2")["changes"] == {"sealed for": ["hv2"]}
    made.on("hv2")
    assert made.present()["changes"] == {"key": "taken from hv1"}
    assert made.path("private.pem").read_bytes() == privates[2]


def test_a_reinstalled_bootstrap_node_makes_no_second_key(made):
    made.on("hv1")
    made.path("authkey").unlink()
    ret = made.present()
    assert ret["result"] is False
    assert "hv1 has no key, but has handed one out to hv2" in ret["comment"]
    assert "name it as cluster:bootstrap_node" in ret["comment"]
    assert not made.path("authkey").exists()
    # hv2 has it, and from there it comes back.
    made.on("hv2")
    assert made.present(bootstrap="hv2")["changes"] == {}
    assert made.handed_out("hv1")["result"] is True
    made.on("hv1")
    assert made.present(bootstrap="hv2")["changes"] == {"key": "taken from hv2"}
    assert made.key("hv1") == made.key("hv2")


def test_a_running_cluster_is_given_no_other_key(made):
    made.on("hv2")
    made.path("authkey").chmod(0o600)
    made.path("authkey").write_bytes(b"another" * 40)
    made.running = True
    ret = made.present()
    assert (ret["result"], ret["changes"]) == (False, {})
    assert ret["comment"].startswith("Nothing has changed: ")
    assert "systemctl stop pacemaker corosync" in ret["comment"]
    made.running = False
    assert made.present()["result"] is True
    assert made.key("hv2") == made.key("hv1")


def test_the_sites_own_key_comes_from_pillar(site):
    site.pillar["cluster"] = {"keys": {"corosync": base64.b64encode(SITE).decode()}}
    site.on("hv3")
    ret = site.present()
    assert (ret["result"], ret["changes"]) == (True, {"key": "taken from pillar"})
    assert site.key("hv3") == SITE
    assert site.present()["changes"] == {}
    assert site.asked == []


def test_a_placeholder_in_pillar_is_refused_and_not_shown(site):
    site.pillar["cluster"] = {"keys": {"corosync": "fix-me-please"}}
    ret = site.present()
    assert ret["result"] is False
    assert ret["comment"].startswith("cluster:keys:corosync: is not base64")
    assert "fix-me" not in json.dumps(ret)


def test_a_key_that_others_can_read_is_closed_and_said(made):
    made.path("authkey").chmod(0o444)
    ret = made.present()
    assert ret["changes"] == {"key": "mode 0444 instead of 0400"}
    assert "may be known" in ret["warnings"][0]
    assert stat.S_IMODE(made.path("authkey").stat().st_mode) == 0o400


def test_a_private_key_that_others_can_read_is_replaced(made):
    before = made.path("private.pem").read_bytes()
    made.path("private.pem").chmod(0o444)
    assert set(made.published()["changes"]) == {"private", "public"}
    assert made.path("private.pem").read_bytes() != before


def test_a_master_that_does_not_answer_is_named(site):
    site.silent = True
    ret = site.published()
    assert ret["result"] is False
    assert "master has not published it within 10 s: no answer" in ret["comment"]
    assert "bootstrap pki --host" in ret["comment"]


def test_without_a_master_nothing_can_be_handed_in(site):
    site.opts["file_client"] = "local"
    ret = site.published()
    assert ret["result"] is False
    assert "without a master" in ret["comment"]


@pytest.fixture(name="adopted")
def a_node_to_be_added(site):
    """hv1 has a running cluster's own key, which is not one of ours; hv2 is to come in."""
    site.on("hv2")
    site.published()
    site.on("hv1")
    site.published()

    def adopted(key):
        site.path("authkey").write_bytes(key)
        site.path("authkey").chmod(0o400)
        return site

    return adopted


def test_an_older_clusters_key_takes_in_a_node(adopted):
    site = adopted(bytes(range(128)))
    assert site.present()["changes"] == {}
    assert site.handed_out("hv2")["changes"] == {"sealed for": ["hv2"]}
    site.on("hv2")
    assert site.present()["changes"] == {"key": "taken from hv1"}
    assert site.key("hv2") == bytes(range(128))


@pytest.mark.parametrize("test", [True, False])
def test_a_key_that_is_too_long_to_be_sealed_says_what_to_do(adopted, test):
    site = adopted(bytes(1024))
    asked = len(site.asked)
    site.on("hv1", test=test)
    ret = site.handed_out("hv2")
    assert (ret["result"], ret["changes"], len(site.asked)) == (False, {}, asked)
    assert "has 1024 bytes, and at most 318 can be sealed for hv2. Give it to all nodes by pillar" in ret["comment"]
    assert "cluster:keys:corosync" in ret["comment"]


# ---- the keeper ----


def test_a_caller_without_a_name_hands_in_nothing(site, privates):
    public = cluster_keys.public_half(privates[0])
    assert "could not be identified" in keeper.deposit(public, {})["error"]
    assert "could not be identified" in keeper.deposit(public, {}, __pub_id="../x")["error"]
    assert list(site.served.iterdir()) == []


def test_what_is_no_key_is_not_kept(site):
    told = keeper.deposit("x", {}, __pub_id="hv1")["error"]
    assert told == "what hv1 handed in is refused: public: it is no RSA public key of 3072 to 8192 bits in PEM"
    assert list(site.served.iterdir()) == []


def test_a_minion_without_the_folder_keeps_nothing(site, monkeypatch, tmp_path, privates):
    monkeypatch.setattr(keeper, "FOLDER", tmp_path / "nowhere")
    assert "run 'bootstrap pki'" in keeper.deposit(cluster_keys.public_half(privates[0]), {}, __pub_id="hv1")["error"]
