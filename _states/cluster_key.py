"""The key of a cluster: the site's from pillar, else made once by the bootstrap node and sealed for each other node.

Each node has a key pair that sealed keys are opened with. Public halves and sealed keys travel through the master,
which says whose they are, and the file server publishes them; neither is of use to anybody else. Each state names who
is missing when its time is over; the next run goes on from there.
"""

import secrets
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from salt.exceptions import CommandExecutionError

try:
    import cryptography  # noqa: F401 - what it is for stands in _utils/cluster_keys.py

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
_MODE = 0o400


def __virtual__() -> bool | tuple[bool, str]:
    """Load only where Salt's Python has the cryptography library."""
    if HAS_CRYPTOGRAPHY:
        return True
    return False, "cluster_key needs the Python library cryptography"


class Wanted(NamedTuple):
    """The key that a node should have, and where it comes from; without a key, why there is none."""

    key: bytes | None
    origin: str


# ---- through the master ----


def _source(folder: str) -> Any:
    """Return where the file server has what hosts handed in."""
    return __utils__["handed_in.source"](folder, __salt__["cp.cache_file"], __utils__["cluster_keys.handed_in"])


def _fetched(folder: str, host: str) -> dict[str, Any] | None:
    """Return what a host has handed in, None if the file server has nothing sound of it."""
    found: dict[str, Any] | None = __utils__["handed_in.fetched"](_source(folder), host)
    return found


def _deposited(keeper: str, source: str, entry: Mapping[str, Any], wait_seconds: int) -> str:
    """Hand in an entry until the file server has it; return why it has not, empty when it has."""
    if __opts__.get("file_client") == "local":
        return "without a master there is nobody to hand it to"
    arguments = [entry["public"], entry["sealed"]]
    ask = partial(
        __utils__["handed_in.hand_in"], __salt__["publish.publish"], keeper, "cluster_key.deposit", arguments
    )
    why: str = __utils__["handed_in.published"](ask, _source(source), __opts__["id"], entry, keeper, wait_seconds)
    return why


# ---- the pair that sealed keys are opened with ----


def published(name: str, keeper: str, source: str, wait_seconds: int = 60) -> dict[str, Any]:
    """Make sure that this host has a key pair, and that the file server has its public half.

    Args:
        name: Path of the private key (0400, root); its folder is made.
        keeper: Minion id of the master's own minion, which is asked only if something differs.
        source: Where the file server has what hosts handed in.
        wait_seconds: How long to go on asking.

    Returns a state result that says for whom it waited.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    private = _own_private(name)
    entry = _fetched(source, __opts__["id"]) or {"public": "", "sealed": {}}
    if private is None:
        ret["changes"]["private"] = "made here"
        private = b"" if __opts__["test"] else __utils__["cluster_keys.new_private"]()
    elif __utils__["own_files.access"](name, _MODE):
        ret["changes"]["private"] = __utils__["own_files.access"](name, _MODE)
    public = __utils__["cluster_keys.public_half"](private) if private else ""
    if not public or entry["public"] != public:
        ret["changes"]["public"] = f"handed in to {keeper}"
    if not ret["changes"]:
        return ret | {"comment": "The file server has the public key of this host."}
    if __opts__["test"]:
        return ret | {"result": None, "comment": "The key pair would be made and its public half handed in."}
    try:
        if "private" in ret["changes"]:
            __utils__["own_files.write"](name, private, _MODE)
    except OSError as error:
        return ret | {"result": False, "comment": f"No key pair: {error}."}
    if "public" in ret["changes"]:
        why = _deposited(keeper, source, entry | {"public": public}, wait_seconds)
        if why:
            return ret | {"result": False, "comment": f"The public key of {__opts__['id']} is not published: {why}."}
    return ret | {"comment": "The file server has the public key of this host now."}


def _own_private(path: str) -> bytes | None:
    """Return this host's private key; None if it is missing, unusable or may be known."""
    private = __utils__["own_files.read"](path)
    if private is None or __utils__["own_files.exposed"](path):
        return None
    try:
        __utils__["cluster_keys.public_half"](private)
    except ValueError:
        return None
    return bytes(private)


# ---- the cluster's key ----


def present(
    name: str,
    cluster: str,
    bootstrap: str,
    private: str,
    source: str,
    pillar_key: str = "",
    wait_seconds: int = 60,
) -> dict[str, Any]:
    """Make sure that this node has the cluster's key (0400, root).

    Args:
        name: Path of the key that corosync reads.
        cluster: The cluster's name.
        bootstrap: Minion id of the node that makes the key if there is none, and seals it for the others.
        private: Path of the key that a sealed one is opened with.
        source: Where the file server has what hosts handed in.
        pillar_key: Where in this host's pillar the site's own key may stand. It is read here and not passed on, so
            that no rendered state holds it.
        wait_seconds: How long to wait for the bootstrap node.

    Returns a state result. A running cluster is not given another key: nodes with different keys do not hear each
    other. Nothing shows a key.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    here = __utils__["own_files.read"](name)
    try:
        wanted = _wanted(here, cluster, bootstrap, private, source, pillar_key, wait_seconds)
        running = here is not None and wanted.key != here and __utils__["cluster_tools.active"]("corosync.service")
    except (ValueError, CommandExecutionError) as error:
        return ret | {"result": False, "comment": f"{error}."}
    if wanted.key is None and not __opts__["test"]:
        return ret | {"result": False, "comment": f"{wanted.origin}."}
    if wanted.key is None or wanted.key != here:
        ret["changes"]["key"] = wanted.origin if wanted.key is not None else f"to come from {bootstrap}"
    elif __utils__["own_files.access"](name, _MODE):
        ret["changes"]["key"] = __utils__["own_files.access"](name, _MODE)
        if __utils__["own_files.exposed"](name):
            ret["warnings"] = [f"{name} was open to others and may be known: replace it while the cluster is stopped."]
    if not ret["changes"]:
        return ret | {"comment": "This node has the cluster's key."}
    if running and wanted.key is not None:
        comment = (
            f"Nothing has changed: {name} is another key than that of the cluster ({wanted.origin}), and nodes with "
            "different keys do not hear each other. Stop it on all nodes first: systemctl stop pacemaker corosync."
        )
        return ret | {"result": False, "changes": {}, "comment": comment}
    if __opts__["test"]:
        return ret | {"result": None, "comment": "The key would be written or repaired."}
    try:
        __utils__["own_files.write"](name, wanted.key, _MODE)
    except OSError as error:
        return ret | {"result": False, "changes": {}, "comment": f"No key: {error}."}
    return ret | {"comment": "This node has the cluster's key now."}


def _wanted(
    here: bytes | None, cluster: str, bootstrap: str, private: str, source: str, pillar_key: str, wait_seconds: int
) -> Wanted:
    """Return the key that this node should have.

    Raises ValueError for one in pillar that is none.
    """
    given = _from_pillar(pillar_key)
    if given is not None:
        return Wanted(given, "taken from pillar")
    if __opts__["id"] != bootstrap:
        return _from_bootstrap(here, cluster, bootstrap, private, source, wait_seconds)
    if here:
        return Wanted(here, "as it was here")
    handed_out = (_fetched(source, bootstrap) or {}).get("sealed") or {}
    if handed_out:
        # A second key would make a second cluster of the same name.
        raise ValueError(
            f"{bootstrap} has no key, but has handed one out to {', '.join(sorted(handed_out))}. If one of them is in "
            "the cluster, name it as cluster:bootstrap_node, and the key comes from there. To begin anew, remove "
            f"{bootstrap}.json from {source} on the master"
        )
    return Wanted(b"" if __opts__["test"] else secrets.token_bytes(256), "made here")


def _from_pillar(key: str) -> bytes | None:
    """Return the key under a pillar key such as ``cluster:keys:corosync``, None without; ValueError for a wrong one."""
    value = __utils__["handed_in.from_pillar"](__pillar__, key)
    if value is None:
        return None
    errors = __utils__["cluster_rules.key_errors"](str(value))
    if errors:
        raise ValueError(f"{key}: {errors[0]}")
    return bytes(__utils__["cluster_rules.key_bytes"](str(value)))


def _from_bootstrap(
    here: bytes | None, cluster: str, bootstrap: str, private: str, source: str, wait_seconds: int
) -> Wanted:
    """Wait for the key that the bootstrap node seals for this one; return it, or who is missing."""
    began, waited = time.monotonic(), 0.0
    while True:
        own = _own_private(private)
        entry = ((_fetched(source, bootstrap) or {}).get("sealed") or {}).get(__opts__["id"])
        public = __utils__["cluster_keys.public_half"](own).encode("ascii") if own else b""
        if entry and here and entry["key"] == __utils__["cluster_keys.digest"](here):
            return Wanted(here, f"that of {bootstrap}")
        why = "has not handed out the cluster's key"
        if own and entry and entry["for"] == __utils__["cluster_keys.digest"](public):
            try:
                return Wanted(__utils__["cluster_keys.unseal"](entry, cluster, own), f"taken from {bootstrap}")
            except ValueError as error:
                why = f"has handed out a key that cannot be used ({error})"
        waited = time.monotonic() - began
        if __opts__["test"] or waited + _PAUSE > wait_seconds:
            return Wanted(
                None,
                f"{bootstrap} (cluster:bootstrap_node) {why} to {__opts__['id']} within {waited:.0f} s: run the "
                "highstate there; the next one here goes on",
            )
        time.sleep(_PAUSE)


def handed_out(
    name: str,
    cluster: str,
    nodes: list[str],
    private: str,
    keeper: str,
    source: str,
    wait_seconds: int = 60,
) -> dict[str, Any]:
    """Make sure that exactly these nodes can take the cluster's key, each sealed for itself.

    Args:
        name: Path of the cluster's key.
        cluster: The cluster's name.
        nodes: Minion ids of the other nodes.
        private: Path of this host's own private key.
        keeper: Minion id of the master's own minion.
        source: Where the file server has what hosts handed in.
        wait_seconds: How long to wait for nodes that have handed in no public key yet.

    Returns a state result. Where a node is missing after that time it is named and the state fails; the others have
    theirs by then. A key that is too long to be sealed fails, too, with what brings it to the nodes instead.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    key, own = __utils__["own_files.read"](name), _own_private(private)
    if key is None or own is None:
        if __opts__["test"]:
            return ret | {"result": None, "changes": {"sealed for": sorted(nodes)}, "comment": "Would be handed out."}
        return ret | {"result": False, "comment": f"There is no {private if key else name} yet."}
    wait = 0 if __opts__["test"] else wait_seconds
    began = time.monotonic()
    sealed_for: set[str] = set()
    while True:
        publics = {node: entry["public"] for node in nodes if (entry := _fetched(source, node))}
        missing = sorted(set(nodes) - set(publics))
        before = (_fetched(source, __opts__["id"]) or {}).get("sealed") or {}
        to_seal, gone = __utils__["cluster_keys.stale"](before, key, publics)
        gone = [node for node in gone if node not in nodes]
        why = _unfit(name, key, {node: publics[node] for node in to_seal})
        if (to_seal or gone) and not why and not __opts__["test"]:
            entry = _sealed(key, cluster, own, before, {node: publics[node] for node in to_seal}, gone)
            why = _deposited(keeper, source, entry, wait_seconds)
        if why:
            return ret | {"result": False, "comment": f"The cluster's key is not handed out: {why}."}
        sealed_for |= {*to_seal}
        ret["changes"] |= {"sealed for": sorted(sealed_for)} if sealed_for else {}
        ret["changes"] |= {"withdrawn from": gone} if gone else {}
        waited = time.monotonic() - began
        if not missing or waited + _PAUSE > wait:
            break
        time.sleep(_PAUSE)
    if __opts__["test"]:
        if missing:
            ret["changes"]["sealed for"] = sorted({*sealed_for, *missing})
        comment = "Would be handed out." if ret["changes"] else "Every node can have the key."
        return ret | {"result": None if ret["changes"] else True, "comment": comment}
    if missing:
        comment = (
            f"These nodes have handed in no public key within {waited:.0f} s: {', '.join(missing)}. Run their "
            "highstate, or take them out of cluster:nodes; the others can have the cluster's key already."
        )
        return ret | {"result": False, "comment": comment}
    return ret | {"comment": "Every node can have the key."}


def _unfit(name: str, key: bytes, publics: Mapping[str, str]) -> str:
    """Return why the cluster's key cannot be sealed for these nodes, and what brings it there; empty if it can."""
    why = __utils__["cluster_keys.unfit"](key, publics)
    if not why:
        return ""
    return (
        f"{name} {why}. Give it to all nodes by pillar, as cluster:keys:corosync in base64 (base64 -w0 {name}), or "
        "change it while the cluster is stopped"
    )


def _sealed(
    key: bytes, cluster: str, own: bytes, before: Mapping[str, Any], publics: Mapping[str, str], gone: list[str]
) -> dict[str, Any]:
    """Return what this node hands in: its public key, and the cluster's key for each other node."""
    sealed = {node: entry for node, entry in before.items() if node not in gone}
    sealed |= {node: __utils__["cluster_keys.seal"](key, cluster, public) for node, public in publics.items()}
    return {"public": __utils__["cluster_keys.public_half"](own), "sealed": sealed}
