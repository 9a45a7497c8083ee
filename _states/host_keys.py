"""ssh between the hosts of one list: a key pair of this host, and the pinned keys of the others.

Private keys stay where they are. The public halves travel through the master: a host hands in its
own, the master says whose they are, and the file server publishes them. Each state names who is
missing when its time is over; the next run goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

try:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    HAS_CRYPTOGRAPHY = True
except ImportError:
    HAS_CRYPTOGRAPHY = False

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __pillar__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}
    __utils__: dict[str, Any] = {}

_PAUSE = 2.0  # seconds between two looks for what another host hands in
_SSH = Path("/etc/ssh")


def __virtual__() -> bool | tuple[bool, str]:
    """Load only where Salt's Python has the cryptography library."""
    if HAS_CRYPTOGRAPHY:
        return True
    return False, "host_keys needs the Python library cryptography"


class Plan(NamedTuple):
    """What a key pair should be: what changes, both files, and whether a key from pillar may be known."""

    changes: dict[str, str]
    private: bytes
    public: bytes
    known: bool


# ---- the key pair ----


def public_half(private: bytes) -> str:
    """Return the public key of a private one as "type base64".

    Raises ValueError for whatever is no private key in OpenSSH's or PEM's form without a password.
    """
    load = serialization.load_pem_private_key
    if b"OPENSSH PRIVATE KEY" in private:
        load = serialization.load_ssh_private_key
    try:
        key = load(private, password=None)
        text = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The library's own words may quote what it read.
        raise ValueError("it is no private key that ssh can use without a password") from None
    return text.decode("ascii")


def new_private() -> bytes:
    """Return a new private key (ed25519) in OpenSSH's form."""
    return ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def _from_pillar(key: str) -> bytes | None:
    """Return the private key under a pillar key such as ``kvm:hostkeys:private_key``, None without."""
    value = __utils__["handed_in.from_pillar"](__pillar__, key)
    if not value:
        return None
    return str(value).strip().encode("utf-8") + b"\n"


def pair(name: str, pillar_key: str = "") -> dict[str, Any]:
    """Make sure that this host has a key pair for ssh: that of its pillar, else one made here once.

    Args:
        name: Path of the private key (0400, root); the public half stands beside it, with ``.pub``.
            Its folder is made.
        pillar_key: Where in this host's pillar a private key may stand. It is read here and not
            passed on, so that no rendered state holds it.

    Returns a state result. A key made here that others could read is replaced, since it may be
    known; one from pillar cannot be, so the result warns. Nothing shows a private key.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    try:
        plan = _planned(name, pillar_key)
    except ValueError as error:
        return ret | {"result": False, "comment": f"{pillar_key}: {error}."}
    ret["changes"] = plan.changes
    if plan.known:
        text = f"{name} was open to others and may be known: put a new key into {pillar_key}."
        ret["warnings"] = [text]
    if not ret["changes"]:
        return ret | {"comment": "The key pair is good."}
    if __opts__["test"]:
        return ret | {"result": None, "comment": "The key pair would be made or repaired."}
    write = __utils__["own_files.write"]
    try:
        # Key before public half: a run that ends between them is finished by the next one.
        if "private" in ret["changes"]:
            write(name, plan.private, 0o400)
        if "public" in ret["changes"]:
            write(f"{name}.pub", plan.public, 0o644)
    except OSError as error:
        return ret | {"result": False, "comment": f"No key pair: {error}."}
    return ret | {"comment": "The key pair was made or repaired."}


def _planned(name: str, pillar_key: str) -> Plan:
    """Compare the pair on disk with what it should be.

    Raises ValueError if there is a key in pillar that cannot be used.
    """
    read, access = __utils__["own_files.read"], __utils__["own_files.access"]
    given, here = _from_pillar(pillar_key), read(name)
    exposed = __utils__["own_files.exposed"](name)
    private = given if given is not None else _kept(here, exposed)
    public = f"{public_half(private)} {__opts__['id']}\n".encode()
    changes = {}
    if private != here:
        made = "made here" if here is None else "replaced by one made here"
        changes["private"] = made if given is None else "taken from pillar"
    elif access(name, 0o400):
        changes["private"] = access(name, 0o400)
    if read(f"{name}.pub") != public or access(f"{name}.pub", 0o644):
        changes["public"] = f"{name}.pub is written"
    return Plan(changes, private, public, given is not None and private == here and exposed)


def _kept(here: bytes | None, exposed: bool) -> bytes:
    """Return the key that was made here, or a new one if it is missing, unusable or may be known."""
    if here is not None and not exposed:
        try:
            public_half(here)
        except ValueError:
            pass
        else:
            return here
    return new_private()


# ---- through the master ----


def _source(folder: str) -> Any:
    """Return where the file server has what hosts handed in."""
    return __utils__["handed_in.source"](folder, __salt__["cp.cache_file"], __utils__["ssh_keys.handed_in"])


def _fetched(folder: str, host: str) -> dict[str, Any] | None:
    """Return what a host has handed in, None if the file server has nothing sound of it."""
    found: dict[str, Any] | None = __utils__["handed_in.fetched"](_source(folder), host)
    return found


def _own(key: str) -> dict[str, Any]:
    """Return what this host has to hand in; raises RuntimeError where there is nothing yet."""
    public, read = __utils__["ssh_keys.public_of"], __utils__["own_files.read"]
    user = public((read(Path(f"{key}.pub")) or b"").decode("ascii", "replace"))
    texts = [(read(path) or b"").decode("ascii", "replace") for path in _SSH.glob("ssh_host_*_key.pub")]
    host = sorted(filter(None, map(public, texts)))
    if not user:
        raise RuntimeError(f"{key}.pub is not there")
    if not host:
        raise RuntimeError(f"there is no host key in {_SSH}: is the ssh server installed?")
    return {"user": user, "host": host}


def published(
    name: str, keeper: str, source: str = "salt://hypervisor-hostkeys", wait_seconds: int = 60
) -> dict[str, Any]:
    """Make sure that the file server has the public halves of this host's keys.

    Args:
        name: Path of the private key; its ``.pub`` and the host keys in ``/etc/ssh`` are handed in.
        keeper: Minion id of the master's own minion, which is asked only if something differs.
        source: Where the file server has what hosts handed in.
        wait_seconds: How long to go on asking.

    Returns a state result that says for whom it waited.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    test, host = __opts__["test"], __opts__["id"]
    try:
        wanted = _own(name)
    except RuntimeError as error:
        if test:
            ret["changes"] = {"published": "to be handed in once there is a key pair"}
            return ret | {"result": None, "comment": f"Not yet: {error}."}
        return ret | {"result": False, "comment": f"Nothing to publish: {error}."}
    before = _fetched(source, host)
    if before == wanted:
        return ret | {"comment": "The file server has the public keys of this host."}
    changes = {"published": {"old": before, "new": wanted}}
    if test:
        return ret | {"result": None, "changes": changes, "comment": f"Would hand them in to {keeper}."}
    if __opts__.get("file_client") == "local":
        return ret | {"result": False, "comment": "Without a master no host key can be published."}
    arguments = [wanted["user"], wanted["host"]]
    ask = partial(__utils__["handed_in.hand_in"], __salt__["publish.publish"], keeper, "host_keys.deposit", arguments)
    why = __utils__["handed_in.published"](ask, _source(source), host, wanted, keeper, wait_seconds)
    if why:
        return ret | {"result": False, "comment": f"The keys of {host} are not published: {why}."}
    return ret | {"changes": changes, "comment": f"{keeper} has published them."}


def trusted(
    name: str,
    hosts: dict[str, dict[str, list[str]]],
    source: str = "salt://hypervisor-hostkeys",
    wait_seconds: int = 60,
) -> dict[str, Any]:
    """Make sure that the keys of exactly these other hosts are pinned and may log in as root.

    Args:
        name: The folder that gets ``known_hosts`` and ``authorized_keys``, both owned whole.
        hosts: ``addresses`` and ``names`` by minion id. A host that is not among them itself trusts
            nobody.
        source: Where the file server has what hosts handed in.
        wait_seconds: How long to wait for hosts that have handed in nothing yet.

    Returns a state result. Where a host is missing after that time it is named and the state fails;
    the others are in the files by then, and one that was there before stays.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    wrong = __utils__["ssh_keys.refused"](hosts)
    if wrong:
        return ret | {"result": False, "comment": f"Nothing has changed: {wrong}."}
    others = __utils__["ssh_keys.others"](hosts, __opts__["id"])
    entries, missing = _collect(others, source, 0 if __opts__["test"] else wait_seconds)
    texts = _texts(name, others, entries)
    ret["changes"] = {path: change for path, (_, change) in texts.items() if change}
    if __opts__["test"]:
        if missing:
            ret["changes"].setdefault("waits for", missing)
        if not ret["changes"]:
            return ret | {"comment": "Exactly these hosts are trusted."}
        return ret | {"result": None, "comment": "Would write whom this host trusts."}
    try:
        for path in ret["changes"]:
            __utils__["own_files.write"](path, texts[path][0].encode(), 0o644)
    except OSError as error:
        return ret | {"result": False, "comment": f"{error}."}
    if missing:
        comment = (
            f"These hosts have handed in no key within {wait_seconds} s: {', '.join(missing)}. "
            "Run their highstate, or take them out of the list; the others are trusted already."
        )
        return ret | {"result": False, "comment": comment}
    return ret | {"comment": "Exactly these hosts are trusted."}


def _texts(
    folder: str, others: Mapping[str, Any], entries: Mapping[str, Any]
) -> dict[str, tuple[str, Any]]:
    """Return, by path, what each file should hold and what is different about it now."""
    read, access = __utils__["own_files.read"], __utils__["own_files.access"]
    paths = (f"{folder}/known_hosts", f"{folder}/authorized_keys")
    before = [(read(path) or b"").decode("utf-8", "replace") for path in paths]
    after = __utils__["ssh_keys.lines"](others, entries, tuple(before))
    found = {}
    for path, old, new in zip(paths, before, after, strict=True):
        # Where nobody was and nobody is to be trusted, no file is made.
        change = _difference(old, new) if old or others else {}
        found[path] = new, change or access(path, 0o644)
    return found


def _collect(
    hosts: Mapping[str, Any], source: str, wait_seconds: int
) -> tuple[dict[str, Any], list[str]]:
    """Return what hosts have handed in, and the ids of those that have not within the time."""
    deadline = time.monotonic() + wait_seconds
    entries: dict[str, Any] = {}
    while True:
        for host in hosts:
            entry = None if host in entries else _fetched(source, host)
            if entry is not None:
                entries[host] = entry
        missing = sorted(set(hosts) - set(entries))
        if not missing or time.monotonic() + _PAUSE > deadline:
            return entries, missing
        time.sleep(_PAUSE)


def _difference(old: str, new: str) -> dict[str, list[str]]:
    """Return which lines of a file go and which come; they hold public keys only. Their order is ours."""
    before, after = set(old.splitlines()), set(new.splitlines())
    found = {"removed": sorted(before - after), "added": sorted(after - before)}
    return {verb: lines for verb, lines in found.items() if lines} or ({"order": [""]} if old != new else {})
