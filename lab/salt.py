"""Salt on the lab's hosts: bootstrap, keys, files and pillar of the master, highstates."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from . import web
from .identity import DOMAIN
from .proc import CommandError, LabError
from .state import CHECKOUT, tree_digest
from .vmspec import silent

if TYPE_CHECKING:
    from .hosts import Hosts

FORMULA = "/srv/formula"
# What a master needs of this repository; formulas are found by their init.sls.
SHARED = (
    "_modules", "_states", "_utils", "_wrapper", "_engines", "_runners", "orchestrate", "bootstrap",
    "requirements/salt.lock", "top.sls.example", "pillar.example",
)  # fmt: skip
# Seconds after which a minion that does not answer is taken for one that never will; most take five, an emulated one
# twenty.
STUCK = 90
# What a minion needs before it is one.
MINION = ("bootstrap", "requirements/salt.lock")
# Prints where the master keeps a minion's key, then the key.
KEY_OF = """cd /etc/salt/pki/master
for folder in minions minions_pre; do
  [ ! -e "$folder/$1" ] || { echo "$folder"; cat "$folder/$1"; }
done"""
LAB_PILLAR = Path(__file__).resolve().parent / "files" / "pillar"


def formulas() -> list[str]:
    """Return the names of the checkout's formulas, sorted."""
    return sorted(path.parent.name for path in CHECKOUT.glob("*/init.sls"))


def sources() -> list[Path]:
    """Return the files and folders that go to the master."""
    return [path for name in (*SHARED, *formulas()) if (path := CHECKOUT / name).exists()]


def sources_digest() -> str:
    """Return a digest of everything a highstate in the lab is made of."""
    return tree_digest([*sources(), LAB_PILLAR])


def pack(paths: Sequence[Path], base: Path) -> bytes:
    """Return files and folders as a tar archive with paths relative to ``base``, owned by root, without caches."""
    buffer = io.BytesIO()

    def clean(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if "__pycache__" in entry.name:
            return None
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        return entry

    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in paths:
            tar.add(path, arcname=str(path.relative_to(base)), filter=clean)
    return buffer.getvalue()


def pillar_files(hosts: Hosts, users: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, str]:
    """Return the lab's pillar: roles by host, what all share, and what a kind of host can't do.

    A container host shares the machine's kernel, so its pillar leaves the kernel alone. With users of
    :func:`lab.web.make_users` the controller serves the page to them, and hypervisors tell it what changes.
    """
    top: dict[str, list[str]] = {"*": ["common"]}
    common = yaml.safe_load((LAB_PILLAR / "common.sls").read_text())
    common["libvirt"]["tls"] = {"allowed_hosts": hosts.hypervisors}
    if all(hosts.kind(name) == "container" for name in hosts.hypervisors):
        # Images of virtual machines have no websockify.
        common["libvirt"]["console"] = {"enabled": True, "clients": [hosts.controller]}
    files = {"common.sls": yaml.safe_dump(common, sort_keys=False)}
    for name, spec in hosts.specs.items():
        kind = (LAB_PILLAR / f"{hosts.kind(name)}.sls").read_text()
        roles = yaml.safe_dump({"roles": list(spec.roles)})
        files[f"{name}.sls"] = roles + (kind if "hypervisor" in spec.roles else "")
        top[name] = [name]
    if users:
        files[f"{hosts.controller}.sls"] += yaml.safe_dump(web.pillar(hosts, users), sort_keys=False)
        for name in hosts.hypervisors:
            files[f"{name}.sls"] = merged_yaml(files[f"{name}.sls"], web.TELLING)
    files["top.sls"] = yaml.safe_dump({"base": top}, sort_keys=False)
    return files


def merge_pillar(hosts: Hosts, files: Mapping[str, str]) -> None:
    """Write these files into ``/srv/pillar`` on the controller, over those of the same name."""
    hosts.unpack(hosts.controller, {f"/srv/pillar/{name}": (0o600, text.encode()) for name, text in files.items()})


def sync(hosts: Hosts, users: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """Put the checkout's formulas and the lab's pillar on the controller, replacing what was there."""
    hosts.run(hosts.controller, ["rm", "-rf", FORMULA, "/srv/pillar"])
    hosts.run(hosts.controller, ["mkdir", "-p", FORMULA, "/srv/pillar"])
    hosts.run(hosts.controller, ["tar", "-x", "-C", FORMULA], stdin=pack(sources(), CHECKOUT))
    merge_pillar(hosts, pillar_files(hosts, users))


def bootstrap_master(hosts: Hosts) -> None:
    """Make the controller the master with its CAs and a policy for every hypervisor."""
    argv = [f"{FORMULA}/bootstrap", "master", "--id", hosts.controller]
    for name, spec in hosts.specs.items():
        if "hypervisor" in spec.roles:
            argv += ["--host", f"{name}={name}.{DOMAIN},{hosts.addresses[name]}"]
    argv += ["--web", ",".join(web.names(hosts))]
    hosts.run(hosts.controller, argv, timeout=300)


def renew_pki(hosts: Hosts) -> None:
    """Let the controller's authorities know what a newer version of this code wants of them."""
    hosts.run(hosts.controller, [f"{FORMULA}/bootstrap", "pki", "--web", ",".join(web.names(hosts))], timeout=120)


def bootstrap_minion(hosts: Hosts, host: str, finger: str) -> None:
    """Make a host a minion that believes only the lab's master."""
    hosts.run(host, ["mkdir", "-p", FORMULA])
    hosts.run(host, ["tar", "-x", "-C", FORMULA], stdin=pack([CHECKOUT / name for name in MINION], CHECKOUT))
    argv = [f"{FORMULA}/bootstrap", "minion", "--master", f"{hosts.controller}.{DOMAIN}", "--id", host]
    hosts.run(host, [*argv, "--finger", finger], timeout=300)


def master_finger(hosts: Hosts, timeout: float = 120) -> str:
    """Return the fingerprint of the master's key, once the master has made it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done = hosts.run(hosts.controller, ["cat", "/etc/salt/pki/master/master.pub"], check=False)
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        if done.returncode == 0 and len(lines) > 2:
            # As salt.utils.crypt.pem_finger does: SHA-256 over the lines between the markers.
            text = "".join(f"{line}\n" for line in lines[1:-1])
            return hashlib.sha256(text.encode()).digest().hex(":")
        time.sleep(0.5)
    name = hosts.controller
    raise LabError(f"the master on {name} has no key after {timeout:.0f} s; see: lab logs {name}")


def accept_keys(hosts: Hosts, timeout: float = 180) -> None:
    """Accept each host's key when the master has received exactly the key that the host has.

    Raises:
        LabError: a key doesn't arrive, or another key stands under a host's name.
    """
    waiting = list(hosts.specs)
    deadline = time.monotonic() + timeout
    while waiting:
        for host in list(waiting):
            own = hosts.run(host, ["cat", "/etc/salt/pki/minion/minion.pub"], check=False).stdout.strip()
            listed = hosts.run(hosts.controller, ["sh", "-c", KEY_OF, "sh", host]).stdout.strip()
            place, _, key = listed.partition("\n")
            if not own or not place:
                continue
            if key.strip() != own:
                raise LabError(f"the master holds another key for {host}; remove it with: salt-key -d {host}")
            if place == "minions_pre":
                hosts.run(hosts.controller, ["salt-key", "--yes", "--accept", host], timeout=60)
            waiting.remove(host)
        if waiting and time.monotonic() > deadline:
            raise LabError(f"no key has reached the master within {timeout:.0f} s from: {', '.join(waiting)}")
        if waiting:
            time.sleep(0.5)


def subscribed(hosts: Hosts, host: str) -> bool:
    """Whether a minion is connected to its master's publisher (port 4505)."""
    done = hosts.run(host, ["ss", "-Htn", "state", "established", "dport", "=", ":4505"], check=False)
    return bool(done.stdout.strip())


def wait_answering(hosts: Hosts, timeout: float = 300, say: Callable[[str], None] = silent) -> None:
    """Wait until every minion answers its master. One that does not after a while is restarted, once.

    Args:
        hosts: the lab's hosts.
        timeout: seconds to wait.
        say: is told which minions are restarted, and why.

    Raises:
        LabError: one doesn't answer; the message names it, whether it is connected, and what it logged last.
    """
    missing = list(hosts.specs)
    began = time.monotonic()
    restarted = False
    while missing and time.monotonic() < began + timeout:
        # A ping that reaches nobody takes salt a quarter of a minute, so none is sent before the minions listen.
        late = [host for host in missing if not subscribed(hosts, host)]
        if not late:
            targets = ",".join(missing)
            # An emulated machine on a busy processor would answer too late each time.
            patience = 15 if any(hosts.kind(host) == "vm" for host in missing) else 5
            argv = ["salt", "--list", targets, f"--timeout={patience}", "--out=json", "--static", "test.ping"]
            done = hosts.run(hosts.controller, argv, check=False, timeout=90)
            try:
                answers = json.loads(done.stdout or "{}")
            except ValueError:
                answers = {}
            late = missing = [host for host in missing if answers.get(host) is not True]
        if late and not restarted and time.monotonic() > began + STUCK:
            restarted = True
            for line in silence(hosts, late):
                say(line)
            say(f"no answer within {STUCK} s, restarting the minions: {', '.join(late)}")
            for host in late:
                hosts.run(host, ["systemctl", "restart", "salt-minion"], check=False, timeout=120)
        if late:
            time.sleep(0.4)
    if missing:
        said = "".join(f"\n  {line}" for line in silence(hosts, missing))
        who = ", ".join(missing)
        raise LabError(f"no answer within {timeout:.0f} s from the minions: {who}; see: lab logs {missing[0]}{said}")


def silence(hosts: Hosts, missing: Sequence[str]) -> list[str]:
    """Return what tells why minions do not answer: who is connected, and the last that minions and master logged."""
    lines = []
    for host, daemon in [*((host, "minion") for host in missing), (hosts.controller, "master")]:
        if daemon == "minion":
            lines.append(f"{host}: {'' if subscribed(hosts, host) else 'not '}connected to the master's publisher")
        log = hosts.run(host, ["tail", "-n", "4", f"/var/log/salt/{daemon}"], check=False)
        lines += [f"{host}: {daemon}: {line[:300]}" for line in (log.stdout + log.stderr).splitlines() if line.strip()]
    return lines


def highstate(
    hosts: Hosts,
    targets: Sequence[str] | None = None,
    *,
    test: bool = False,
    timeout: float = 900,
    extra: Sequence[str] = (),
) -> dict[str, Any]:
    """Run ``salt '*' state.highstate`` on the controller, after one that an interrupted command may have left running.

    Args:
        hosts: the lab's hosts.
        targets: minions; all when None.
        test: only predict.
        timeout: seconds until the whole run counts as lost.
        extra: further arguments of ``state.highstate``.

    Returns:
        What each minion returned: a mapping of state to result, or a list of error messages.

    Raises:
        LabError: a minion didn't return, or Salt's answer can't be read.
    """
    who = ["--list", ",".join(targets)] if targets else ["*"]
    arguments = [*(["test=True"] if test else []), *extra]
    # Then a minion is asked whether it is still at work, and one on a busy machine may not say so in time.
    patience = 600 if any(hosts.kind(host) == "vm" for host in targets or hosts.specs) else 300
    argv = ["salt", *who, f"--timeout={patience}", "--out=json", "--static"]
    argv += ["state.highstate", "queue=True", *arguments]
    done = hosts.run(hosts.controller, argv, check=False, timeout=timeout)
    try:
        answers: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise LabError(f"salt's answer to a highstate can't be read: {(done.stdout + done.stderr)[-2000:]}") from None
    lost = [host for host in (targets or hosts.specs) if not isinstance(answers.get(host), (dict, list))]
    if lost:
        said = answers.get(lost[0])
        raise LabError(f"no highstate result from: {', '.join(lost)} ({said!r}); see: lab logs {lost[0]}")
    return answers


def summary(answer: Any) -> dict[str, Any]:
    """Return figures of one minion's highstate: ``states``, ``changed``, ``failed`` (with comments), ``seconds``."""
    if not isinstance(answer, dict):
        return {"states": 0, "changed": [], "failed": [str(line) for line in answer], "seconds": 0.0}
    rows = answer.values()

    def named(row: Mapping[str, Any]) -> str:
        return str(row.get("__id__") or row.get("name"))

    return {
        "states": len(answer),
        "changed": sorted(named(row) for row in rows if row.get("changes") or row.get("result") is None),
        "failed": [f"{named(row)}: {row.get('comment', '')}" for row in rows if row.get("result") is False],
        "seconds": round(sum(float(row.get("duration", 0)) for row in rows) / 1000, 1),
    }


def check_green(answers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each host's :func:`summary`.

    Raises:
        LabError: a state failed anywhere; the message has every failed state with its reason.
    """
    figures = {host: summary(answer) for host, answer in answers.items()}
    failed = [f"{host}: {text}" for host, row in figures.items() for text in row["failed"]]
    if failed:
        raise LabError("the highstate failed\n" + "\n".join(failed))
    return figures


def answering(hosts: Hosts) -> bool:
    """Whether every minion answers now."""
    try:
        wait_answering(hosts, timeout=8)
    except (LabError, CommandError):
        return False
    return True


def merged_yaml(text: str, over: Mapping[str, Any]) -> str:
    """Return a pillar file's text with values merged over its own, mappings key by key."""

    def merge(base: Any, top: Any) -> Any:
        if isinstance(base, dict) and isinstance(top, Mapping):
            return {**base, **{key: merge(base.get(key), value) for key, value in top.items()}}
        return top

    return str(yaml.safe_dump(merge(yaml.safe_load(text) or {}, over), sort_keys=False))
