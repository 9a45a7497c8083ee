"""What the lab tells Salt, and how it reads Salt's answers."""

import io
import subprocess
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from salt.utils.crypt import pem_finger

from lab import salt, state, web
from lab.hosts import Hosts
from lab.kitchen import HostSpec
from lab.proc import LabError
from lab.state import CHECKOUT, Paths

SPECS = {
    "controller": HostSpec("controller", ("controller",), 1024, 1),
    "hv1": HostSpec("hv1", ("hypervisor",), 1024, 1),
    "hv2": HostSpec("hv2", ("hypervisor",), 1024, 1),
}
ADDRESSES = {"controller": "10.213.1.10", "hv1": "10.213.1.11", "hv2": "10.213.1.12"}


class Scripted(Hosts):
    """Hosts that answer what a test has written down."""

    answer: Callable[[str, list[str]], Any]
    asked: list[tuple[str, list[str], Any]]

    def __init__(self, answer=lambda host, argv: "", kinds=None):
        kinds = kinds or dict.fromkeys(SPECS, "container")
        super().__init__(Paths("unit"), SPECS, ADDRESSES, kinds)
        # Hosts are frozen.
        self.__dict__.update(answer=answer, asked=[])

    def run(self, host, argv, **options):
        self.asked.append((host, list(argv), options.get("stdin")))
        said = self.answer(host, list(argv))
        code, text = said if isinstance(said, tuple) else (0, said)
        return subprocess.CompletedProcess(list(argv), code, text, "")


def pillar(**kinds):
    """The pillar of a lab whose hosts are of these kinds, compiled as top.sls says: host to values."""
    files = salt.pillar_files(Scripted(kinds={**dict.fromkeys(SPECS, "container"), **kinds}))
    data = {name: yaml.safe_load(text) or {} for name, text in files.items()}
    top = data.pop("top.sls")["base"]
    assert set(data) == {f"{name}.sls" for names in top.values() for name in names}
    return {
        host: {key: value for name in [*top["*"], *top[host]] for key, value in data[f"{name}.sls"].items()}
        for host in SPECS
    }


def test_pillar_gives_roles_and_who_may_connect():
    found = pillar()
    assert {host: values["roles"] for host, values in found.items()} == {
        "controller": ["controller"],
        "hv1": ["hypervisor"],
        "hv2": ["hypervisor"],
    }
    for values in found.values():
        assert values["libvirt"]["tls"] == {"allowed_hosts": ["hv1", "hv2"]}
        assert values["libvirt"]["pki"]["ca_server"] == "controller"


def test_consoles_are_served_where_every_image_has_what_they_need():
    served = {"enabled": True, "clients": ["controller"]}
    assert {host: values["libvirt"].get("console") for host, values in pillar().items()} == dict.fromkeys(
        ("controller", "hv1", "hv2"), served
    )
    assert all("console" not in values["libvirt"] for values in pillar(hv2="vm").values())


def test_only_a_virtual_machine_has_a_kernel_to_set():
    found = pillar(hv2="vm")
    assert found["hv1"]["kvm"] == {"kernel": {"manage": False}}
    assert found["hv2"]["kvm"]["kernel"].get("manage", True) is True
    assert found["hv2"]["kvm"]["hugepages"]
    assert "kvm" not in found["controller"]


def test_no_pillar_of_a_host_hides_what_all_share():
    """Files of one host and the common one share no key, so their order can't matter."""
    files = {name: yaml.safe_load(text) or {} for name, text in salt.pillar_files(Scripted()).items()}
    common = set(files.pop("common.sls"))
    files.pop("top.sls")
    assert all(not common & set(values) for values in files.values())


def test_every_formula_and_no_cache_goes_to_the_master():
    with tarfile.open(fileobj=io.BytesIO(salt.pack(salt.sources(), CHECKOUT))) as tar:
        members = tar.getmembers()
    names = {member.name for member in members}
    for formula in CHECKOUT.glob("*/init.sls"):
        assert f"{formula.parent.name}/init.sls" in names
        assert f"{formula.parent.name}/schema.yaml" in names
    assert {"bootstrap", "top.sls.example", "_modules/formula.py", "_wrapper/formula.py"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert not [name for name in names if name.split("/")[0] in ("lab", "test", "docs", ".git", ".venv")]
    assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "root")}


def test_a_minion_gets_what_bootstrap_needs():
    assert all((CHECKOUT / name).is_file() for name in salt.MINION)


def test_a_minion_is_told_its_master_and_its_key():
    hosts = Scripted()
    salt.bootstrap_minion(hosts, "hv1", "1f:9e")
    host, argv, _ = hosts.asked[-1]
    assert host == "hv1"
    assert argv[1:] == ["minion", "--master", "controller.lab.internal", "--id", "hv1", "--finger", "1f:9e"]


def test_users_of_the_lab_make_a_page_of_the_controllers_pillar_alone():
    users = web.make_users()
    assert len({user["password"] for user in users.values()}) == len(web.USERS)
    files = salt.pillar_files(Scripted(), users)
    found = {name: yaml.safe_load(text) for name, text in files.items()}
    own = found["controller.sls"]
    assert own["roles"] == ["controller"]
    assert own["saltapi"]["users"]["operator"] == {
        "password_hash": users["operator"]["hash"],
        "roles": {"operator": ["hv1", "hv2"]},
    }
    assert own["nginx"]["server_names"] == ["controller.lab.internal", "10.213.1.10"]
    assert own["nginx"]["consoles"] == {"hv1": "10.213.1.11", "hv2": "10.213.1.12"}
    assert not [name for name, data in found.items() if name != "controller.sls" and {"saltapi", "nginx"} & set(data)]
    assert not [text for text in files.values() if any(user["password"] in text for user in users.values())]
    assert [found[f"{name}.sls"].get("libvirt") for name in ("hv1", "hv2", "controller")] == [
        {"events": {"enabled": True}}, {"events": {"enabled": True}}, None,
    ]  # fmt: skip
    assert "nginx" not in salt.pillar_files(Scripted())["controller.sls"]
    assert "events" not in salt.pillar_files(Scripted())["hv1.sls"]


def test_the_lab_waits_until_an_announced_restart_is_over():
    states = ["activating\n", "active\n", "inactive\n"]
    hosts = Scripted(lambda host, argv: (3, states.pop(0)))
    web.settled(hosts)
    assert states == []
    with pytest.raises(LabError, match="has not ended within 0 s"):
        web.settled(hosts, timeout=0)
    others = Scripted(lambda host, argv: (3, "inactive\n"))
    web.minions_settled(others)
    assert [(host, argv[-1]) for host, argv, _ in others.asked] == [
        ("hv1", web.MINION_RESTART), ("hv2", web.MINION_RESTART),
    ]  # fmt: skip


def test_only_hypervisors_may_have_certificates_and_the_master_those_of_its_page():
    hosts = Scripted()
    salt.bootstrap_master(hosts)
    _, argv, _ = hosts.asked[-1]
    assert argv[-2:] == ["--web", "controller.lab.internal,10.213.1.10"]
    assert [argv[index + 1] for index, word in enumerate(argv) if word == "--host"] == [
        "hv1=hv1.lab.internal,10.213.1.11",
        "hv2=hv2.lab.internal,10.213.1.12",
    ]


def test_the_fingerprint_is_the_one_that_salt_checks(tmp_path):
    pem = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkq\nAQIDAQAB\n-----END PUBLIC KEY-----\n"
    (tmp_path / "master.pub").write_text(pem)
    shown = salt.master_finger(Scripted(lambda host, argv: pem))
    assert shown == pem_finger(path=str(tmp_path / "master.pub"), sum_type="sha256")


def test_a_master_without_a_key_is_named():
    with pytest.raises(LabError, match=r"^the master on controller has no key after 0 s; see: lab logs controller$"):
        salt.master_finger(Scripted(lambda host, argv: (1, "")), timeout=0.1)


def keys(place="minions_pre", other=None):
    """Hosts whose keys have reached the master; ``other`` is what stands under hv1's name there."""
    waiting = dict.fromkeys(SPECS, place)

    def answer(host, argv):
        if argv[0] == "cat":
            return f"KEY {host}\n"
        if argv[0] == "sh":
            asked = argv[-1]
            return f"{waiting[asked]}\n{other if other and asked == 'hv1' else f'KEY {asked}'}\n"
        assert argv[:3] == ["salt-key", "--yes", "--accept"]
        waiting[argv[3]] = "minions"
        return ""

    return Scripted(answer), waiting


def test_keys_are_accepted_when_they_are_the_hosts_own():
    hosts, waiting = keys()
    salt.accept_keys(hosts)
    assert waiting == dict.fromkeys(SPECS, "minions")
    hosts, _ = keys("minions")
    salt.accept_keys(hosts)
    assert not [argv for _, argv, _ in hosts.asked if argv[0] == "salt-key"], "accepted ones are left alone"


def test_another_key_under_a_hosts_name_is_never_accepted():
    hosts, waiting = keys(other="KEY of somebody else")
    with pytest.raises(LabError, match=r"^the master holds another key for hv1; remove it with: salt-key -d hv1$"):
        salt.accept_keys(hosts)
    assert waiting["hv1"] == "minions_pre"


def test_a_key_that_does_not_come_is_named():
    hosts = Scripted(lambda host, argv: "KEY\n" if argv[0] == "cat" else "")
    with pytest.raises(LabError, match=r"^no key has reached the master within 0 s from: controller, hv1, hv2$"):
        salt.accept_keys(hosts, timeout=0)


def test_the_script_that_finds_keys_runs_in_a_shell(tmp_path):
    for folder in ("minions", "minions_pre"):
        (tmp_path / folder).mkdir()
    (tmp_path / "minions" / "hv1").write_text("KEY\n")
    script = salt.KEY_OF.replace("/etc/salt/pki/master", str(tmp_path))
    for host, said in (("hv1", "minions\nKEY\n"), ("hv2", "")):
        argv = ["sh", "-c", script, "sh", host]
        assert subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True).stdout == said


ROWS: dict[str, Any] = {
    "pkg_|-a_|-a_|-installed": {"__id__": "a", "result": True, "changes": {"x": 1}, "duration": 1500.0},
    "file_|-b_|-b_|-managed": {"__id__": "b", "result": True, "changes": {}, "duration": 250},
    "file_|-c_|-c_|-managed": {"__id__": "c", "result": None, "changes": {}, "comment": "would"},
    "file_|-d_|-d_|-managed": {"name": "/etc/d", "result": False, "changes": {}, "comment": "no room"},
}


def test_a_summary_counts_and_names():
    assert salt.summary(ROWS) == {
        "states": 4,
        "changed": ["a", "c"],
        "failed": ["/etc/d: no room"],
        "seconds": 1.8,
    }


@pytest.mark.parametrize("answer", [["Rendering SLS 'base:kvm' failed", "line 2"], ["no matching sls found"]])
def test_a_summary_of_what_did_not_compile(answer):
    assert salt.summary(answer) == {"states": 0, "changed": [], "failed": answer, "seconds": 0.0}
    with pytest.raises(LabError, match="the highstate failed\nhv1: "):
        salt.check_green({"hv1": answer})


def test_green_needs_every_state_of_every_host():
    good = {key: row for key, row in ROWS.items() if row["result"]}
    assert salt.check_green({"hv1": good})["hv1"]["changed"] == ["a"]
    with pytest.raises(LabError, match=r"the highstate failed\nhv2: /etc/d: no room$"):
        salt.check_green({"hv1": good, "hv2": ROWS})


def test_a_highstate_of_all_and_of_some():
    hosts = Scripted(lambda host, argv: '{"controller": {}, "hv1": {}, "hv2": []}')
    assert salt.highstate(hosts) == {"controller": {}, "hv1": {}, "hv2": []}
    assert hosts.asked[-1][1][1] == "*"
    salt.highstate(hosts, ["hv1"], test=True, extra=["pillar={}"])
    assert hosts.asked[-1][1][1:3] == ["--list", "hv1"]
    assert hosts.asked[-1][1][-4:] == ["state.highstate", "queue=True", "test=True", "pillar={}"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("No minions matched", "salt's answer to a highstate can't be read: No minions matched"),
        ('{"controller": {}, "hv1": {}}', r"no highstate result from: hv2 \(None\); see: lab logs hv2"),
        ('{"controller": {}, "hv1": false, "hv2": {}}', r"no highstate result from: hv1 \(False\)"),
    ],
)
def test_a_lost_highstate_is_an_error(said, message):
    with pytest.raises(LabError, match=message):
        salt.highstate(Scripted(lambda host, argv: said))


def test_minions_that_do_not_answer_are_named_with_what_they_logged(monkeypatch):
    def said(host, argv):
        if argv[0] == "tail":
            return f"\nlog of {host}'s {argv[-1]}\n"
        return '{"controller": true, "hv1": false}'

    monkeypatch.setattr(salt, "subscribed", lambda hosts, host: True)
    hosts = Scripted(said)
    with pytest.raises(LabError) as error:
        salt.wait_answering(hosts, timeout=1)
    assert str(error.value).splitlines() == [
        "no answer within 1 s from the minions: hv1, hv2; see: lab logs hv1",
        "  hv1: connected to the master's publisher",
        "  hv1: minion: log of hv1's /var/log/salt/minion",
        "  hv2: connected to the master's publisher",
        "  hv2: minion: log of hv2's /var/log/salt/minion",
        "  controller: master: log of controller's /var/log/salt/master",
    ]
    monkeypatch.setattr(salt, "subscribed", lambda hosts, host: host != "hv1")
    with pytest.raises(LabError, match=r"\n  hv1: not connected to .*\n.*\n  hv2: connected to "):
        salt.wait_answering(hosts, timeout=1)
    monkeypatch.setattr(salt, "subscribed", lambda hosts, host: True)
    assert salt.answering(Scripted(lambda host, argv: '{"controller": true, "hv1": true, "hv2": true}'))


def test_a_minion_that_is_stuck_is_restarted_once_and_that_is_said(monkeypatch):
    stuck = ["hv1"]
    said: list[str] = []

    def answer(host, argv):
        if argv == ["systemctl", "restart", "salt-minion"]:
            stuck.remove(host)
        return '{"controller": true, "hv1": true, "hv2": true}'

    monkeypatch.setattr(salt, "subscribed", lambda hosts, host: host not in stuck)
    monkeypatch.setattr(salt, "STUCK", 0.1)
    hosts = Scripted(answer)
    salt.wait_answering(hosts, timeout=20, say=said.append)
    assert "hv1: not connected to the master's publisher" in said
    assert said[-1] == "no answer within 0.1 s, restarting the minions: hv1"
    assert [host for host, argv, _ in hosts.asked if argv[0] == "systemctl"] == ["hv1"]
    # It may be connected and silent all the same; and what a restart does not help is not restarted for ever.
    silent = Scripted(lambda host, argv: '{"controller": true, "hv1": false, "hv2": true}')
    with pytest.raises(LabError, match="no answer within 2 s from the minions: hv1;"):
        salt.wait_answering(silent, timeout=2)
    assert [host for host, argv, _ in silent.asked if argv[0] == "systemctl"] == ["hv1"]


def test_values_are_merged_over_a_pillar_file():
    text = "# a comment\nkvm:\n  kernel:\n    manage: false\n  list: [1, 2]\nroles: [hypervisor]\n"
    merged = yaml.safe_load(salt.merged_yaml(text, {"kvm": {"kernel": {"args": {"a": None}}, "list": [3]}}))
    assert merged == {
        "kvm": {"kernel": {"manage": False, "args": {"a": None}}, "list": [3]},
        "roles": ["hypervisor"],
    }
    assert yaml.safe_load(salt.merged_yaml("", {"kvm": {}})) == {"kvm": {}}


def test_the_digest_follows_the_sources(tmp_path, monkeypatch):
    for name in ("kvm", "_utils/__pycache__"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "kvm" / "init.sls").write_text("include: []\n")
    monkeypatch.setattr(salt, "CHECKOUT", tmp_path)
    assert salt.formulas() == ["kvm"]
    first = salt.sources_digest()
    (tmp_path / "_utils" / "__pycache__" / "x.pyc").write_text("cache")
    assert salt.sources_digest() == first
    (tmp_path / "kvm" / "init.sls").write_text("include: [kvm.packages]\n")
    assert salt.sources_digest() != first
    assert state.CHECKOUT == CHECKOUT
