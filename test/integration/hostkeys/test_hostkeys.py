"""Root of a listed host reaches root of the others by ssh, and nobody gets in, or in another's name."""

import json
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from lab import salt

HOSTS = ("hv1", "hv2")
OURS = "/etc/ssh/hypervisor"
DROP_INS = ("/etc/ssh/ssh_config.d/10-hypervisor.conf", "/etc/ssh/sshd_config.d/10-hypervisor.conf")
SERVED = "/srv/salt/hypervisor-hostkeys"
KNOWN, AUTHORIZED = f"{OURS}/known_hosts", f"{OURS}/authorized_keys"
MASTER_LOG = "/var/log/salt/master"
CONTROL = "/var/log/hypervisor-lab-control"
# What a program of a host's root can say to the master: that it is whom the last argument names. Salt's own client
# would put the true id in its place.
FORGED = """
import json, sys
import salt.channel.client, salt.config
opts = salt.config.minion_config("/etc/salt/minion")
opts["master_uri"] = "tcp://" + sys.argv[1] + ":4506"
key, claimed = sys.argv[2:]
class Load(dict):
    def __setitem__(self, name, value):
        if name != "id":
            super().__setitem__(name, value)
load = Load(cmd="minion_pub", fun="host_keys.deposit", arg=[key, [key]], tgt="controller", tgt_type="glob",
            ret="", tmo=5, form="clean", id=claimed, no_parse=[])
with salt.channel.client.ReqChannel.factory(opts) as channel:
    print(json.dumps(channel.send(load, tries=1, timeout=30)))
"""
# Looks for texts, on standard input, in what Salt keeps of jobs and writes to logs, and in the file tree; prints the
# places of each. Folders that are named must be there; of the others what there is. What vanishes meanwhile and
# sockets hold nothing; whatever else cannot be read is an error.
SEARCH = """
import errno, json, os, subprocess, sys
words = [word.encode() for word in sys.stdin.read().split("|")]
found = [[] for _ in words]
def note(place, data):
    for word, places in zip(words, found):
        if word in data:
            places.append(place)
def judge(error):
    if error.errno not in (errno.ENOENT, errno.ENXIO):
        raise error
for root in sys.argv[1:]:
    os.listdir(root)
others = {"/var/cache/salt/master/jobs", "/run/log", "/srv/salt", "/srv/formula"}
for root in sorted(others.union(sys.argv[1:])):
    for folder, _, names in os.walk(root, onerror=judge):
        for name in names:
            try:
                with open(os.path.join(folder, name), "rb") as file:
                    note(file.name, file.read())
            except OSError as error:
                judge(error)
note("journal", subprocess.run(["journalctl", "--no-pager", "--output=cat"], stdout=subprocess.PIPE, check=True).stdout)
print(json.dumps(found))
"""
SEARCHED = ("/var/cache/salt/minion", "/var/log")
SEARCHED_ON_MASTER = (*SEARCHED, "/var/cache/salt/master/jobs", "/srv/salt", "/srv/formula")


def listed(lab, **more):
    """Return the pillar of hosts that reach each other."""
    hosts = {host: {"addresses": [lab.hosts.addresses[host]], "names": [f"{host}.lab.internal"]} for host in HOSTS}
    return {"enabled": True, "hosts": hosts, **more}


@contextmanager
def pillar(lab, **by_file):
    """Merge kvm:hostkeys into the lab's pillar files for a while."""
    before = salt.pillar_files(lab.hosts)
    changed = {f"{name}.sls": {"kvm": {"hostkeys": value}} for name, value in by_file.items()}
    salt.merge_pillar(lab.hosts, {name: salt.merged_yaml(before[name], over) for name, over in changed.items()})
    try:
        yield
    finally:
        salt.merge_pillar(lab.hosts, {name: before[name] for name in changed})


def applied(lab, *options, hosts=HOSTS):
    """Run the SLS on hosts at the same time, since they wait for each other; return each one's rows by id."""
    argv = ["salt-call", "--out=json", "--log-level=quiet", "state.sls", "kvm.hostkeys", *options]

    def one(host):
        answer = json.loads(lab.run(host, argv, check=False, timeout=300).stdout)["local"]
        return {row["__id__"]: row for row in answer.values()}

    with ThreadPoolExecutor(len(hosts)) as pool:
        return dict(zip(hosts, pool.map(one, hosts), strict=True))


def changes(rows):
    """Return what changed or would change, by id."""
    return {name: set(row["changes"]) for name, row in rows.items() if row["changes"]}


def green(answers):
    assert all(row["result"] is not False for rows in answers.values() for row in rows.values()), answers
    return answers


def reach(lab, source, target, *options):
    """Log in from one host to another as nobody would type it: no options, no questions."""
    return lab.run(source, ["ssh", "-o", "BatchMode=yes", *options, target, "hostname"], check=False, timeout=30)


def files(lab, host):
    """Return the digest, mode and owner of each file that is ours on a host."""
    names = f"{OURS}/* {' '.join(DROP_INS)}"
    return lab.run(host, ["sh", "-ec", f"sha256sum {names}; stat -c '%n %a %U' {names}"]).stdout


def mentioned(lab, host, *texts):
    """Return the places on a host where texts stand that may stand nowhere.

    A word that stands in a file and in the journal has to be found, or else the search itself is broken.
    """
    word = f"control-{secrets.token_hex(8)}"
    arrived = f"until journalctl --no-pager --output=cat | grep -q {word}; do sleep 0.2; done"
    lab.run(host, ["tee", CONTROL], stdin=word)
    try:
        lab.run(host, ["systemd-cat", "echo", word])
        lab.run(host, ["sh", "-c", arrived], timeout=30)
        roots = SEARCHED_ON_MASTER if host == "controller" else SEARCHED
        done = lab.run(host, ["python3", "-c", SEARCH, *roots], stdin="|".join([word, *texts]))
    finally:
        lab.run(host, ["rm", CONTROL])
    control, *found = json.loads(done.stdout)
    assert {CONTROL, "journal"} <= set(control), (host, control)
    return sorted({place for places in found for place in places})


@pytest.fixture(scope="module")
def linked(lab):
    """Both hypervisors after the first run, with what was predicted, what happened, and root's own file before."""
    own = {host: lab.run(host, ["cat", "/root/.ssh/authorized_keys"]).stdout for host in HOSTS}
    with pillar(lab, common=listed(lab)):
        predicted = green(applied(lab, "test=True"))
        absent = [lab.run(host, ["test", "-e", OURS], check=False).returncode for host in HOSTS]
        happened = green(applied(lab))
        yield SimpleNamespace(predicted=predicted, absent=absent, happened=happened, own=own)
    with pillar(lab, common={"enabled": True, "hosts": {}}):
        green(applied(lab))
    for host in HOSTS:
        # With an empty list nothing is left that ssh or sshd reads.
        assert lab.run(host, ["ls", *DROP_INS], check=False).stdout == ""
        lab.run(host, ["rm", "-r", OURS])
    lab.run("controller", ["sh", "-c", f"rm -f {SERVED}/*.json"])


def test_the_first_run_does_what_was_predicted_and_the_second_nothing(lab, linked):
    assert linked.absent == [1, 1], "the prediction touched something"
    for host in HOSTS:
        rows = linked.predicted[host]
        assert {name for name, row in rows.items() if row["result"] is None} == set(changes(linked.happened[host]))
    assert {host: changes(rows) for host, rows in green(applied(lab)).items()} == {host: {} for host in HOSTS}


@pytest.mark.parametrize(("source", "target"), [HOSTS, HOSTS[::-1]])
def test_root_reaches_root_by_every_name_without_a_prompt(lab, linked, source, target):
    for name in (target, f"{target}.lab.internal", lab.hosts.addresses[target]):
        done = reach(lab, source, name)
        assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
    # Nothing but a shell: no way through to other ports.
    done = reach(lab, source, target, "-o", "ExitOnForwardFailure=yes", "-W", "localhost:22")
    assert done.returncode != 0
    assert lab.run(target, ["cat", "/root/.ssh/authorized_keys"]).stdout == linked.own[target]


def test_a_key_is_good_from_its_own_address_only(lab, linked):
    key = lab.run("hv1", ["cat", f"{OURS}/id_ed25519"]).stdout
    lab.run("controller", ["sh", "-c", "umask 077; cat > /run/stolen"], stdin=key)
    known = lab.run("hv1", ["cat", KNOWN]).stdout
    lab.run("controller", ["tee", "/run/known"], stdin=known)
    try:
        options = ["-o", "UserKnownHostsFile=/run/known", "-i", "/run/stolen"]
        done = reach(lab, "controller", "root@hv2", *options)
    finally:
        lab.run("controller", ["rm", "/run/stolen", "/run/known"])
    assert done.returncode == 255
    assert "Permission denied" in done.stderr


@pytest.mark.parametrize(
    "spoil",
    [
        {
            "kvm_hostkeys_pair": ("public", f"rm {OURS}/id_ed25519.pub"),
            "kvm_hostkeys_trusted": (KNOWN, f"echo 'evil ssh-ed25519 AAAA' >> {KNOWN}"),
            "kvm_hostkeys_ssh": (DROP_INS[0], f"echo '# mine' >> {DROP_INS[0]}"),
        },
        {
            "kvm_hostkeys_pair": ("private", f"chmod 0600 {OURS}/id_ed25519"),
            "kvm_hostkeys_trusted": (AUTHORIZED, f"echo 'ssh-ed25519 AAAA evil' >> {AUTHORIZED}"),
            "kvm_hostkeys_ssh": (DROP_INS[1], f"rm {DROP_INS[1]}"),
        },
    ],
    ids=["first", "second"],
)
def test_what_is_altered_is_seen_and_repaired_alone(lab, linked, spoil):
    before = files(lab, "hv1")
    for _, command in spoil.values():
        lab.run("hv1", ["sh", "-c", command])
    expected = {name: {item} for name, (item, _) in spoil.items()}
    if DROP_INS[1] in expected["kvm_hostkeys_ssh"]:
        expected["kvm_hostkeys_ssh"].add("ssh.service")
    if "public" in expected["kvm_hostkeys_pair"]:
        # It cannot be compared while it is missing.
        foreseen = {**expected, "kvm_hostkeys_published": {"published"}}
    else:
        foreseen = expected
    assert changes(applied(lab, "test=True", hosts=["hv1"])["hv1"]) == foreseen
    assert changes(green(applied(lab, hosts=["hv1"]))["hv1"]) == expected
    assert files(lab, "hv1") == before
    assert reach(lab, "hv2", "hv1").returncode == 0


def test_no_host_hands_in_a_key_in_anothers_name(lab, linked):
    def kept(host):
        return lab.run("controller", ["cat", f"{SERVED}/{host}.json"]).stdout

    def refusals():
        """Count the master's words on requests of hv2 that said hv1."""
        words = "Request id mismatch. Found 'hv1' but expected 'hv2'"
        done = lab.run("controller", ["grep", "-cF", words, MASTER_LOG], check=False)
        assert done.returncode in (0, 1), done.stderr
        return int(done.stdout)

    def claim(host):
        """Let hv2 say in the request itself which host it is."""
        argv = ["/opt/saltstack/salt/bin/python", "-c", FORGED, lab.hosts.addresses["controller"], key, host]
        return lab.run("hv2", argv, check=False, timeout=120)

    key = lab.run("hv2", ["cut", "-d ", "-f1,2", f"{OURS}/id_ed25519.pub"]).stdout.strip()
    true = json.loads(kept("hv2"))
    before = kept("hv1")
    assert true["host"] != [key], "what is handed in below would not show"

    def publish(host, target, arguments):
        argv = ["salt-call", "--out=json", "--log-level=quiet", "publish.publish", target, "host_keys.deposit"]
        done = lab.run(host, [*argv, f"arg={json.dumps(arguments)}", "timeout=20"], check=False, timeout=60)
        return json.loads(done.stdout)["local"]

    # It says in the request itself that it is hv1: the master refuses, and nothing is kept of anybody.
    refused_before = refusals()
    done = claim("hv1")
    assert done.returncode != 0, done.stdout
    time.sleep(3)
    assert refusals() > refused_before, done.stderr
    assert (kept("hv1"), json.loads(kept("hv2"))) == (before, true)
    # The same request under its own name is heard.
    done = claim("hv2")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["minions"] == ["controller"]
    deadline = time.monotonic() + 30
    while json.loads(kept("hv2")) != {"user": key, "host": [key]}:
        assert time.monotonic() < deadline, "the request was not heard"
        time.sleep(0.5)
    assert kept("hv1") == before
    # It says in an argument that it is hv1: the master says that it is not.
    assert publish("hv2", "controller", [key, [key], "__pub_id=hv1"]) == {"controller": {"stored": "hv2"}}
    assert kept("hv1") == before
    # A host keeps nothing for others, and what is no key is not kept.
    assert "bootstrap pki" in publish("hv2", "hv1", [key, [key]])["hv1"]["error"]
    refused = publish("hv2", "controller", [key, [f"{key}\nevil {key}"]])
    assert "no public key" in refused["controller"]["error"]
    # A minion that is not one of the hosts is not let through.
    assert publish("controller", "controller", [key, [key]]) in ({}, None)
    # A time-out gives an empty answer too, so what would have been kept must not be there.
    assert lab.run("controller", ["test", "-e", f"{SERVED}/controller.json"], check=False).returncode == 1
    assert kept("hv1") == before
    # What it handed in for itself is put right by its own next run.
    assert changes(green(applied(lab, hosts=["hv2"]))["hv2"]) == {"kvm_hostkeys_published": {"published"}}


def test_a_host_that_is_missing_is_named_and_the_others_go_on(lab, linked):
    more = listed(lab, wait_seconds=0)
    more["hosts"]["hv3"] = {"addresses": ["192.0.2.3"]}
    with pillar(lab, common=more):
        rows = applied(lab, hosts=["hv1"])["hv1"]
        assert rows["kvm_hostkeys_trusted"]["result"] is False
        assert "no key within 0 s: hv3" in rows["kvm_hostkeys_trusted"]["comment"]
        assert reach(lab, "hv1", "hv2").returncode == 0
        assert reach(lab, "hv2", "hv1").returncode == 0
    green(applied(lab, hosts=["hv1"]))


def test_a_host_that_leaves_the_list_loses_its_line(lab, linked):
    assert reach(lab, "hv2", "hv1").returncode == 0
    fewer = listed(lab)
    fewer["hosts"]["hv3"] = {"addresses": ["192.0.2.3"]}
    del fewer["hosts"]["hv2"]
    # hv3 stands for the rest of the list, so that the files stay.
    lab.run("controller", ["cp", f"{SERVED}/hv1.json", f"{SERVED}/hv3.json"])
    with pillar(lab, common=listed(lab), hv1=fewer):
        # Mappings of pillar merge, so the host's own list is written whole.
        salt.merge_pillar(lab.hosts, {"common.sls": salt.pillar_files(lab.hosts)["common.sls"]})
        green(applied(lab, hosts=["hv1"]))
    try:
        for path in (KNOWN, AUTHORIZED):
            text = lab.run("hv1", ["cat", path]).stdout
            assert "hv2" not in text
            assert "hv3" in text
        done = reach(lab, "hv2", "hv1")
        assert done.returncode == 255
        assert "Permission denied" in done.stderr
    finally:
        lab.run("controller", ["rm", f"{SERVED}/hv3.json"])
        with pillar(lab, common=listed(lab)):
            green(applied(lab, hosts=["hv1"]))
    assert reach(lab, "hv2", "hv1").returncode == 0


def test_a_key_of_pillar_is_used_and_shown_nowhere(lab, linked):
    lab.run("hv1", ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", "/run/given"])
    private = lab.run("hv1", ["cat", "/run/given"]).stdout
    lab.run("hv1", ["rm", "/run/given", "/run/given.pub"])
    with pillar(lab, common=listed(lab), hv1={"private_key": private}):
        first = green(applied(lab, hosts=["hv1"]))
        assert changes(first["hv1"])["kvm_hostkeys_pair"] == {"private", "public"}
        green(applied(lab, hosts=["hv2"]))
        assert lab.run("hv1", ["cat", f"{OURS}/id_ed25519"]).stdout == private
        assert reach(lab, "hv1", "hv2").returncode == 0
        body = private.splitlines()[2]
        assert body not in json.dumps(first)
        for host in ("controller", *HOSTS):
            # The body of this key, and the head of any.
            assert mentioned(lab, host, body, "PRIVATE KEY-----") == [], host
        assert body not in lab.run("controller", ["salt", "hv2", "pillar.items"]).stdout
    with pillar(lab, common=listed(lab)):
        # Without the key in pillar what is there stays: it is this host's own now.
        assert changes(green(applied(lab, hosts=["hv1"]))["hv1"]) == {}
