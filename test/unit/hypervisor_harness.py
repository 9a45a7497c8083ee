"""What the tests of the module ``hypervisor`` share: its utilities by name, a libvirt that answers from a table."""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from salt.exceptions import CommandExecutionError

ROOT = Path(__file__).resolve().parents[2]
UUID = "92ff2d92-61e2-492a-a5f8-bd711528baf2"
OTHER = "11111111-61e2-492a-a5f8-bd711528baf2"

DOMAIN = f"""
<domain type='qemu' id='1'>
  <name>web</name>
  <uuid>{UUID}</uuid>
  <memory unit='KiB'>524288</memory>
  <currentMemory unit='KiB'>262144</currentMemory>
  <vcpu placement='static' current='1'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <boot dev='hd'/>
  </os>
  <cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/var/lib/libvirt/images/web.qcow2'/>
      <backingStore type='file'><format type='qcow2'/><source file='/var/lib/libvirt/images/base.qcow2'/>
        <backingStore/></backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <interface type='network'>
      <mac address='52:54:00:00:00:01'/><source network='default'/><target dev='vnet0'/><model type='virtio'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:02'/><source bridge='br0'/><link state='down'/>
    </interface>
    <serial type='pty'><source path='/dev/pts/0'/><log file='/var/log/web.log' append='on'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
    <graphics type='vnc' socket='/run/web.vnc'><listen type='socket' socket='/run/web.vnc'/></graphics>
  </devices>
</domain>
"""
STATS = """
Domain: 'web'
  state.state=1
  state.reason=1
  cpu.time=9644658000
  cpu.user=8470000000
  cpu.system=1160000000
  balloon.current=262144
  balloon.maximum=524288
  balloon.rss=223510
  vcpu.current=1
  net.count=1
  net.0.name=vnet0
  net.0.rx.bytes=100
  net.0.tx.bytes=200
  block.count=1
  block.0.name=vda
  block.0.rd.bytes=4096
  block.0.rd.times=1500000000
  block.0.wr.bytes=0
  block.0.capacity=1073741824
  block.0.allocation=200704
"""
CAPABILITIES = """
<capabilities>
  <host>
    <uuid>{uuid}</uuid>
    <cpu><arch>x86_64</arch><model>EPYC</model><vendor>AMD</vendor>
      <topology sockets='1' dies='1' cores='2' threads='1'/></cpu>
    <topology><cells num='1'><cell id='0'><memory unit='KiB'>24684084</memory>
      <cpus num='2'><cpu id='0'/><cpu id='1'/></cpus></cell></cells></topology>
  </host>
  <guest><os_type>hvm</os_type><arch name='x86_64'><domain type='qemu'/><domain type='kvm'/></arch></guest>
</capabilities>
"""
POOL = """
<pool type='dir'><name>images</name><uuid>33333333-61e2-492a-a5f8-bd711528baf2</uuid>
  <capacity unit='bytes'>1000</capacity><allocation unit='bytes'>400</allocation>
  <available unit='bytes'>99999999999</available>
  <target><path>/var/lib/libvirt/images</path></target></pool>
"""
NETWORK = """
<network><name>default</name><uuid>44444444-61e2-492a-a5f8-bd711528baf2</uuid><forward mode='nat'/>
  <bridge name='virbr0'/><ip address='192.0.2.1' netmask='255.255.255.0'><dhcp/></ip></network>
"""
LIST = ("list", "--all", "--uuid")


def utilities(*prefixes: str) -> dict[str, Callable[..., Any]]:
    """Every public function of the utilities with a prefix by its name in Salt."""
    found = {}
    wanted = prefixes or ("hypervisor", "guest", "libvirt_tools", "network_tool", "cluster_")
    for path in sorted(path for prefix in wanted for path in (ROOT / "_utils").glob(f"{prefix}*.py")):
        module = importlib.import_module(f"_utils.{path.stem}")
        found.update({f"{path.stem}.{name}": value for name, value in vars(module).items() if callable(value)})
    return found


class Libvirt:
    """Answers virsh's commands from a table and writes them down.

    A value of the table is a text, a :class:`CommandExecutionError`, or a function of the words.
    """

    def __init__(self, table: dict[tuple[str, ...], Any] | None = None, uri: str = "qemu:///system") -> None:
        self.uri = uri
        self.calls: list[tuple[str, ...]] = []
        self._begun: tuple[str, ...] = ()
        self.table: dict[tuple[str, ...], Any] = {
            (*LIST, "--name"): f"{UUID} web",
            (*LIST, "--persistent"): UUID,
            (*LIST, "--autostart"): UUID,
            (*LIST, "--with-managed-save"): "",
            ("domstats",): STATS,
            ("dumpxml", UUID): DOMAIN,
            ("domstate", UUID): "running",
            ("domifaddr", UUID): "",
            ("snapshot-list", UUID): "",
            ("domjobinfo", UUID): "Job type:         None\n",
            ("capabilities",): CAPABILITIES.format(uuid=f"host of {uri}"),
            ("nodememstats",): "total  :  24684084 KiB\nfree   :  9917432 KiB\nbuffers:  0 KiB\ncached :  0 KiB\n",
            ("freepages",): "Node 0:\n4KiB: 9\n2048KiB: 3\n\nNode 1:\n2048KiB: 4\n",
            ("version",): "Running hypervisor: QEMU 7.2.22\nRunning against daemon: 9.0.0\n",
            ("pool-list",): "images",
            ("pool-dumpxml", "images"): POOL,
            ("pool-refresh",): "",
            ("net-list",): "default",
            ("net-dumpxml", "default"): NETWORK,
            ("iface-list",): " br0   active   76:ad:90:b8:c5:4d\n eth0  active 52:54:00:d5:02:0b\n",
            ("domcapabilities",): "<domainCapabilities/>",
            ("hypervisor-cpu-compare",): "superset",
            **(table or {}),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def ask(self, *words: str, timeout: float = 60) -> str:
        self.calls.append(words)
        for length in range(len(words), 0, -1):
            if words[:length] in self.table:
                answer = self.table[words[:length]]
                if callable(answer):
                    answer = answer(*words)
                if isinstance(answer, Exception):
                    raise answer
                return str(answer)
        raise CommandExecutionError(f"virsh {words[0]}: no such thing")

    def attempt(self, *words: str, timeout: float = 60) -> tuple[str, str]:
        try:
            return self.ask(*words), ""
        except CommandExecutionError as error:
            return "", str(error)

    def begin(self, *words: str) -> None:
        self._begun = words

    def answer(self, timeout: float) -> str | None:
        found = self.table.get((*self._begun[:1], "timeout"))
        if found == "hangs":
            self.table.pop((*self._begun[:1], "timeout"))
            return None
        return self.ask(*self._begun)

    def asked(self, command: str) -> list[tuple[str, ...]]:
        """The calls of one command."""
        return [call for call in self.calls if call[0] == command]


PROGRAM = f"""#!{sys.executable}
import json, os, shlex, sys
log = os.environ["VIRSH_LOG"]
table = json.loads(os.environ.get("VIRSH_TABLE", "{{}}"))
def note(what):
    with open(log, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(what) + chr(10))
note(sys.argv[1:])
if "nowhere" in sys.argv[-1]:
    sys.exit("error: failed to connect to the hypervisor\\nerror: Connection refused")
for line in sys.stdin:
    # As virsh with readline: the prompt, and the line again.
    sys.stdout.write("virsh # " + line)
    for part in line.split(";"):
        words = shlex.split(part)
        if words[0] == "echo":
            sys.stdout.write(" ".join(words[1:]))
            continue
        note(words)
        if words[0] == "die":
            sys.exit("error: gone")
        answer = table.get(words[0])
        if answer is None:
            sys.stderr.write("error: unknown command: '" + words[0] + "'\\n")
            break
        if words[0] == "hang":
            import time
            time.sleep(60)
        sys.stdout.write(answer + chr(10))
    sys.stdout.flush()
"""


def install(folder: Path) -> Path:
    """Writes a program virsh into a folder; returns the path of what it writes down, one JSON list a line."""
    program = folder / "virsh"
    program.write_text(PROGRAM, encoding="utf-8")
    program.chmod(0o755)
    return folder / "virsh.log"


def written(log: Path) -> list[list[str]]:
    """What the program was started with and asked."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def joined(words: list[str]) -> str:
    """A command as a text for messages."""
    return shlex.join(words)
