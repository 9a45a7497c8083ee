"""A guest that is made of a cloud's image, fetched from a web server, and is a minion from its first start.

The image is a small Debian with cloud-init and Salt. Its kernel has drivers of virtio alone, as those of Debian's own
cloud images. It takes a minute or two to start without KVM, so that the tests after the first build on each other.
"""

import base64
import hashlib
import json
import time

import pytest
import yaml
from declared import FOLDER, HOST, call, declare, end, predicted_and_done

from lab import vmimage

pytestmark = pytest.mark.long
NAME = "cg-web.lab"
WEB = "/srv/cg-images"
PORT = 8123
MAC, ADDRESS, GATEWAY = "52:54:00:c6:00:32", "192.168.47.50", "192.168.47.1"
SECRET = "cg-only-the-guest-reads-this"
NETWORK = {"forward": "nat", "bridge": "cgnet0", "ipv4_config": {"cidr": f"{GATEWAY}/24"}}
# An emulated guest with a whole system in it, and a machine that may do other things besides.
PATIENCE = 900
SLS = ("state.apply", "libvirt.guests")


class Site:
    """The lab with a web server of images on its controller, and its master's pillar of the first hypervisor.

    Attributes:
        lab: the lab.
        image: the address of the image on the web server.
        digest: of the image, SHA-256.
        guest: the declaration of the guest, which tests alter.
    """

    def __init__(self, lab):
        self.lab = lab
        controller = lab.hosts.controller
        content = vmimage.build(vmimage.Recipe("bookworm", size_mib=3072, cloud=True)).path.read_bytes()
        self.address = lab.hosts.addresses[controller]
        self.image = f"http://{self.address}:{PORT}/cloud.qcow2"
        self.digest = hashlib.sha256(content).hexdigest()
        lab.run(controller, ["mkdir", "-p", WEB])
        lab.run(controller, ["sh", "-c", f"cat >{WEB}/cloud.qcow2"], stdin=content)
        serve = ["python3", "-m", "http.server", "--bind", self.address, "--directory", WEB, str(PORT)]
        lab.run(controller, ["systemd-run", "--unit=cg-web", "--collect", *serve])
        hosts = "".join(f"{address} {name}.lab.internal\n" for name, address in lab.hosts.addresses.items())
        route = {"to": "default", "via": GATEWAY}
        card = {"match": {"macaddress": MAC}, "addresses": [f"{ADDRESS}/24"], "routes": [route]}
        self.guest = {
            "cpu": {"current": 1, "maximum": 2},
            "mem": {"current": 512, "maximum": 640},
            "disks": [{"name": "system", "image": self.image, "image_hash": f"sha256={self.digest}", "size": 4096}],
            "interfaces": [{"name": "lan", "type": "network", "source": "cg-net", "mac": MAC}],
            "cloud_init": {
                "hostname": "web",
                "user_data": {
                    "write_files": [
                        {"path": "/etc/hosts", "append": True, "content": hosts},
                        {"path": "/etc/cg-user-data", "permissions": "0600", "content": SECRET},
                    ]
                },
                "network_config": {"version": 2, "ethernets": {"lan": card}},
                "minion": {"grains": {"cg_role": "web"}},
            },
        }
        self.file = f"/srv/pillar/{HOST}.sls"
        self.before = lab.run(controller, ["cat", self.file]).stdout

    def assign(self, **libvirt):
        """Write the pillar of the first hypervisor on the master."""
        pillar = yaml.safe_load(self.before)
        pillar["libvirt"] = {**pillar.get("libvirt", {}), **libvirt}
        text = yaml.safe_dump(pillar).encode() if libvirt else self.before.encode()
        self.lab.hosts.unpack(self.lab.hosts.controller, {self.file: (0o600, text)})

    def keys(self):
        """Return the names of minions whose keys the master has, by what it thinks of them."""
        script = "cd /etc/salt/pki/master; for one in minions{,_pre,_denied}; do echo $one: $(ls $one); done"
        lines = self.lab.run(self.lab.hosts.controller, ["bash", "-c", script]).stdout.splitlines()
        return {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}

    def ask(self, *words):
        """Run a function of Salt on the guest; return what it answers."""
        argv = ["salt", NAME, "--out=json", "--static", "--timeout=60", *words]
        done = self.lab.run(self.lab.hosts.controller, argv, check=False, timeout=200)
        return json.loads(done.stdout or "{}").get(NAME)

    def wait(self):
        """Wait until the guest's minion listens to the master."""
        controller, deadline = self.lab.hosts.controller, time.monotonic() + PATIENCE
        argv = ["ss", "-Htn", "state", "established", "sport", "=", ":4505"]
        router = self.lab.hosts.addresses[HOST]
        # The guest comes from the address of its host, whose own minion is there already.
        while self.lab.run(controller, argv).stdout.count(f"{router}:") < 2:
            assert time.monotonic() < deadline, self.lab.console(HOST, NAME)[-3000:]
            time.sleep(1)


@pytest.fixture(scope="module")
def site(lab):
    """See :class:`Site`; all of it is taken away in the end."""
    made = Site(lab)
    yield made
    controller = lab.hosts.controller
    made.assign()
    lab.run(controller, ["systemctl", "stop", "cg-web"])
    lab.run(controller, ["rm", "-rf", WEB, f"/etc/salt/pki/master/minions/{NAME}"])
    end(lab, "cg-")
    lab.run(HOST, ["sh", "-c", f"rm -rf {FOLDER}/cloud-* /var/lib/hypervisor-formula/guest-keys/cg-*"])


def files(lab):
    """Return what lies in the folder of images."""
    return lab.run(HOST, ["ls", "-A", FOLDER]).stdout.split()


def test_an_image_with_another_checksum_is_refused_and_leaves_nothing(site):
    before = files(site.lab)
    wrong = {"name": "system", "image": site.image, "image_hash": f"sha256={'0' * 64}"}
    row = declare(site.lab, "cg-wrong", ensure="defined", disks=[wrong])
    assert (row["result"], row["changes"]) == (False, {})
    assert f"sha256 is {site.digest}, not {'0' * 64}" in row["comment"]
    assert files(site.lab) == before
    assert "cg-wrong" not in site.lab.run(HOST, ["virsh", "list", "--all", "--name"]).stdout.split()


def test_an_image_that_is_not_there_is_told(site):
    lost = {"name": "system", "image": f"{site.image}.lost", "image_hash": f"sha256={site.digest}"}
    row = declare(site.lab, "cg-wrong", ensure="defined", disks=[lost])
    assert (row["result"], row["changes"]) == (False, {})
    assert f"{site.image}.lost cannot be fetched: File not found" in row["comment"]


@pytest.fixture(scope="module", name="up")
def answering_guest(site):
    """The guest, once its minion listens."""
    lab = site.lab
    site.assign(networks={"cg-net": NETWORK}, guests={NAME: site.guest})
    changes = predicted_and_done(lab, *SLS)
    assert set(changes) == {"libvirt_network_cg-net", f"libvirt_guest_{NAME}"}
    guest = changes[f"libvirt_guest_{NAME}"]
    assert set(guest) == {"disk system", "minion key", "cloud_init", "guest", "state"}
    # The guest has not begun to start, and its key is there.
    assert NAME in site.keys()["minions"]
    site.wait()
    return site


def test_the_guest_answers_and_nobody_had_to_accept_its_key(up):
    assert up.ask("test.ping") is True
    keys = up.keys()
    assert NAME in keys["minions"]
    assert (keys["minions_pre"], keys["minions_denied"]) == ([], [])


def test_the_guest_has_what_its_declaration_says(up):
    grains = up.ask("grains.item", "id", "cg_role", "host", "ipv4", "num_cpus", "osfinger")
    assert (grains["id"], grains["cg_role"], grains["host"], grains["num_cpus"]) == (NAME, "web", "web", 1)
    assert ADDRESS in grains["ipv4"]
    assert grains["osfinger"] == "Debian-12"
    # Its content stays in the guest.
    assert up.ask("file.get_hash", "/etc/cg-user-data") == hashlib.sha256(SECRET.encode()).hexdigest()
    routes = up.ask("cmd.run", "ip -4 route show default")
    assert f"via {GATEWAY} " in routes
    assert up.ask("file.read", "/sys/block/vda/size").strip() == str(4096 * 2048)


def test_a_second_run_changes_nothing(up):
    rows = call(up.lab, *SLS)
    assert {key: row["changes"] for key, row in rows.items() if row["changes"] or row["result"] is not True} == {}


def test_no_secret_is_in_a_job_or_a_log(up):
    private = up.lab.run(HOST, ["cat", f"/var/lib/hypervisor-formula/guest-keys/{NAME}/minion.pem"]).stdout
    line = private.splitlines()[3]
    assert len(line) == 64
    # The guest's disk has the file in base64, and so would whatever told what is on that disk.
    coded = base64.encodebytes(private.encode()).decode().splitlines()[3]
    up.lab.run(HOST, ["grep", "-qFe", coded, f"{FOLDER}/{NAME}_cloud-init.iso"])
    for host, folders in ((up.lab.hosts.controller, "/var/cache/salt/master/jobs /var/log"), (HOST, "/var/log")):
        # The cache of jobs is in a form of its own, which keeps texts as they are. That of a minion may hold what
        # pillar declares, but never a key; its marks of jobs come and go.
        cache = "--exclude-dir=proc /var/cache/salt/minion"
        places = {folders: (line, coded, "PRIVATE KEY", SECRET), cache: (line, coded)}
        for place, words in places.items():
            for word in words:
                found = up.lab.run(host, ["sh", "-c", f"grep -rlFe '{word}' {place}"], check=False)
                assert (found.returncode, found.stdout, found.stderr) == (1, "", ""), f"{word} on {host}"
        # The journal's own files may be compressed.
        journal = up.lab.run(host, ["journalctl", "--all", "--no-pager", "--output=cat"]).stdout
        assert len(journal.splitlines()) > 10, f"no journal on {host}"
        assert [word for word in (line, coded, SECRET) if word in journal] == [], f"in the journal of {host}"
    jobs = "grep -rlFe guest_minion.accept /var/cache/salt/master/jobs"
    assert up.lab.run(up.lab.hosts.controller, ["sh", "-c", jobs]).stdout != ""


def test_the_guest_sees_more_processors_and_memory_at_once(up):
    before = int(up.ask("grains.get", "mem_total"))
    more = {**up.guest, "cpu": {"current": 2, "maximum": 2}, "mem": {"current": 640, "maximum": 640}}
    up.assign(networks={"cg-net": NETWORK}, guests={NAME: more})
    changes = predicted_and_done(up.lab, *SLS)
    assert {key: set(change) for key, change in changes.items()} == {f"libvirt_guest_{NAME}": {"cpu", "mem"}}
    seen = up.ask("cmd.run", "cat /sys/devices/system/cpu/present; grep MemTotal /proc/meminfo")
    assert seen.splitlines()[0] == "0-1"
    assert int(seen.split()[-2]) // 1024 > before + 100
    rows = call(up.lab, *SLS)
    assert {key: row["changes"] for key, row in rows.items() if row["changes"] or row["result"] is not True} == {}


def test_the_guest_goes_and_its_image_and_key_stay(up):
    gone = {"ensure": "absent", "delete_disks": True, "stop_timeout": 240}
    up.assign(networks={"cg-net": NETWORK}, guests={NAME: gone})
    changes = predicted_and_done(up.lab, *SLS)
    assert set(changes) == {f"libvirt_guest_{NAME}"}
    disk = f"{FOLDER}/{NAME}_system.qcow2"
    assert set(changes[f"libvirt_guest_{NAME}"]) == {"state", "guest", "cloud_init", f"disk {disk}"}
    left = files(up.lab)
    assert [name for name in left if name.startswith("cg-")] == []
    assert f"cloud-{up.digest[:16]}.qcow2" in left
    assert NAME in up.keys()["minions"]
    rows = call(up.lab, *SLS)
    assert {key: row["changes"] for key, row in rows.items() if row["changes"] or row["result"] is not True} == {}
