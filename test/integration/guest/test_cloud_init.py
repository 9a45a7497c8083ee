"""What a guest reads at its first start, and whose keys the master accepts for it."""

import json

import pytest
import yaml

HOST, OTHER = "hv1", "hv2"
FOLDER = "/var/lib/libvirt/images"
NAME = "gt-minion.lab"
SEED = {"user_data": {"password": "gt-secret"}, "network_config": {"version": 2}, "minion": {"grains": {"web": True}}}


def state(lab, name, host=HOST, **declaration):
    """Call the state of one guest; return its row."""
    words = [f"{key}={json.dumps(value)}" for key, value in declaration.items()]
    argv = ["salt", host, "--out=json", "--static", "--timeout=90", "state.single", "guest.defined", name, *words]
    answer = json.loads(lab.run(lab.hosts.controller, [*argv, "queue=True"], check=False, timeout=300).stdout)[host]
    (row,) = answer.values()
    return row


@pytest.fixture(scope="module")
def master(lab):
    """The lab's master, whose pillar assigns one seeded guest to the first hypervisor and a plain one."""
    path = f"/srv/pillar/{HOST}.sls"
    before = lab.run(lab.hosts.controller, ["cat", path]).stdout
    guests = {NAME: {"cloud_init": {"minion": True}}, "gt-plain.lab": {"ensure": "defined"}}
    pillar = yaml.safe_load(before)
    pillar.setdefault("libvirt", {})["guests"] = guests
    lab.hosts.unpack(lab.hosts.controller, {path: (0o600, yaml.safe_dump(pillar).encode())})
    yield lab
    lab.hosts.unpack(lab.hosts.controller, {path: (0o600, before.encode())})
    lab.run(lab.hosts.controller, ["rm", "-f", f"/etc/salt/pki/master/minions/{NAME}"])
    for host in (HOST, OTHER):
        lab.run(host, ["virsh", "undefine", NAME], check=False)
        lab.run(host, ["sh", "-c", f"rm -rf {FOLDER}/gt-* /var/lib/hypervisor-formula/guest-keys/gt-*"])


def read(lab, name):
    """Return a file of the guest's disk as the guest would read it."""
    script = (
        f"d=$(mktemp -d) && xorriso -osirrox on -indev {FOLDER}/{NAME}_cloud-init.iso -extract / $d >/dev/null 2>&1 && "
        f"cat $d/{name}; rm -rf $d"
    )
    return lab.run(HOST, ["sh", "-c", script]).stdout


def accepted(lab):
    """Return a digest of each accepted key by the name that it is accepted for."""
    script = "cd /etc/salt/pki/master/minions && sha256sum -- *"
    lines = lab.run(lab.hosts.controller, ["sh", "-c", script]).stdout.splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def test_a_guest_gets_its_data_and_an_accepted_key(master):
    predicted = state(master, NAME, mem=128, cloud_init=SEED, test=True)
    assert NAME not in accepted(master)
    done = state(master, NAME, mem=128, cloud_init=SEED)
    assert done["result"] is True, done["comment"]
    assert predicted["changes"] == done["changes"]
    assert {"minion key", "cloud_init", "guest"} <= set(done["changes"])
    again = state(master, NAME, mem=128, cloud_init=SEED)
    assert (again["result"], again["changes"]) == (True, {}), again["comment"]
    public = master.run(HOST, ["cat", f"/var/lib/hypervisor-formula/guest-keys/{NAME}/minion.pub"]).stdout
    there = master.run(master.hosts.controller, ["cat", f"/etc/salt/pki/master/minions/{NAME}"]).stdout
    assert public == there
    assert yaml.safe_load(read(master, "user-data")) == {"password": "gt-secret"}
    assert json.loads(read(master, "meta-data"))["local-hostname"] == NAME
    assert "write /etc/salt/pki/minion/minion.pem 0400" in read(master, "vendor-data")
    mode = master.run(HOST, ["stat", "--format=%a", f"{FOLDER}/{NAME}_cloud-init.iso"]).stdout
    assert mode.strip() == "600"
    assert "gt-secret" not in json.dumps(done)
    # Another content is another disk, and nothing else.
    other = {**SEED, "hostname": "w.lab"}
    assert set(state(master, NAME, mem=128, cloud_init=other)["changes"]) == {"cloud_init"}


@pytest.mark.parametrize(
    ("host", "name", "words"),
    [
        (HOST, "gt-plain.lab", "declares no guest gt-plain.lab with cloud_init:minion"),
        (HOST, "gt-nobody.lab", "declares no guest gt-nobody.lab"),
        (OTHER, NAME, f"the pillar of {OTHER} declares no guest {NAME}"),
        (HOST, OTHER, "is the name of a host"),
    ],
)
def test_what_pillar_has_not_assigned_is_refused(master, host, name, words):
    before = accepted(master)
    row = state(master, name, host, cloud_init={"minion": True})
    assert (row["result"], row["changes"]) == (False, {})
    assert words in row["comment"]
    assert accepted(master) == before
    assert name not in master.run(host, ["virsh", "list", "--all", "--name"]).stdout.split()


def test_a_key_that_was_made_anew_is_not_believed(master):
    assert NAME in accepted(master)
    before = master.run(master.hosts.controller, ["cat", f"/etc/salt/pki/master/minions/{NAME}"]).stdout
    keys = f"/var/lib/hypervisor-formula/guest-keys/{NAME}"
    master.run(HOST, ["rm", "-rf", keys])
    # A guest that is there may have come from another host, with its key.
    row = state(master, NAME, mem=128, cloud_init=SEED)
    assert row["result"] is True, row["comment"]
    assert row["changes"] == {}
    assert f"The key of {NAME}'s minion was made on another host and stays." in row["comment"]
    assert master.run(HOST, ["test", "-e", keys], check=False).returncode == 1
    # A new guest gets a new key.
    master.run(HOST, ["virsh", "undefine", NAME])
    row = state(master, NAME, mem=128, cloud_init=SEED)
    assert row["result"] is False
    assert f"has accepted another key of {NAME}" in row["comment"]
    assert master.run(master.hosts.controller, ["cat", f"/etc/salt/pki/master/minions/{NAME}"]).stdout == before


@pytest.mark.parametrize("public", ["", "no-key"])
def test_what_is_no_public_key_is_refused(master, public):
    before = accepted(master)
    words = ["publish.publish", master.hosts.controller, "guest_minion.accept", json.dumps([NAME, public])]
    argv = ["salt", HOST, "--out=json", "--static", "--timeout=90", *words]
    answer = json.loads(master.run(master.hosts.controller, argv, timeout=300).stdout)[HOST]
    assert "the guest's public key" in answer[master.hosts.controller]["refused"]
    assert accepted(master) == before
