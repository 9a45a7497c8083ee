"""What a new guest reads when it first starts: cloud-init's NoCloud disk, and the key of its minion.

The disk may hold passwords and does hold a minion's private key, so that it is readable by root alone,
as is all that it is made from. A digest of its content stands in the disk's own header: that is how a
run sees whether it is still as declared.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

STATE = Path("/var/lib/hypervisor-formula")
KEYS = STATE / "guest-keys"
# Different distributions have different ones; virt-install brings the first on most.
MAKERS = ("xorrisofs", "genisoimage", "mkisofs")
# Where the header of an ISO 9660 disk has its application identifier, and how long that is.
_HEADER, _LENGTH = 16 * 2048 + 574, 128
KEY_BITS = 3072
# Seconds for the master to look into its pillar.
ACCEPT_SECONDS = 60
# Runs in the guest, once. It replaces the key that a package has made when it was installed.
_SCRIPT = """#!/bin/sh
set -eu
umask 077
mkdir -p /etc/salt/minion.d /etc/salt/pki/minion
write() { base64 -d >"$1.new"; chmod "$2" "$1.new"; mv "$1.new" "$1"; }
write /etc/salt/pki/minion/minion.pem 0400 <<'END'
{private}
END
write /etc/salt/pki/minion/minion.pub 0644 <<'END'
{public}
END
write /etc/salt/pki/minion/minion_master.pub 0644 <<'END'
{master_key}
END
write /etc/salt/minion.d/hypervisor.conf 0644 <<'END'
{config}
END
systemctl enable salt-minion.service
systemctl restart salt-minion.service
"""


def document(content: Any) -> str:
    """Writes what cloud-init reads as YAML; a text stays as it is."""
    return content if isinstance(content, str) else json.dumps(content, indent=1, sort_keys=True) + "\n"


def files(name: str, declared: Mapping[str, Any], master: str, master_key: Path) -> dict[str, str]:
    """Writes the files of the disk.

    Args:
        name: the guest.
        declared: the key ``cloud_init`` of its declaration.
        master: the address of the master, for a guest that is to be a minion.
        master_key: the file with the public key of the only master that it will believe.

    Returns:
        Their text by name.
    """
    hostname = declared.get("hostname", name)
    identity = declared.get("instance_id", f"iid-{name}")
    found = {"meta-data": document({"instance-id": identity, "local-hostname": hostname})}
    user = declared.get("user_data", {})
    found["user-data"] = user if isinstance(user, str) else "#cloud-config\n" + document(user)
    if "network_config" in declared:
        found["network-config"] = document(declared["network_config"])
    if minion := declared.get("minion"):
        config = {"master": master, **(minion if isinstance(minion, Mapping) else {}), "id": name}
        # As vendor data: user data would replace its lists, and a script runs beside what they say.
        found["vendor-data"] = _script(name, config, master_key)
    return found


def digest(content: Mapping[str, str]) -> str:
    """Computes what tells one content from another."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest().upper()


def mark(path: str) -> str | None:
    """Reads the digest that stands in the header of a disk; None if there is no disk."""
    try:
        with Path(path).open("rb") as handle:
            handle.seek(_HEADER)
            return handle.read(_LENGTH).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None


def make(run: Callable[..., str], content: Mapping[str, str], path: str) -> None:
    """Makes the disk.

    Args:
        run: ``libvirt_tools.run``.
        content: its files, as :func:`files` writes them.
        path: where it will be; what is there is replaced as a whole.

    Raises:
        ValueError: no program is installed that can.
        CommandExecutionError: the program failed.
    """
    maker = next((one for one in MAKERS if shutil.which(one)), None)
    if maker is None:
        raise ValueError(f"cloud_init: one of {', '.join(MAKERS)} has to be installed")
    STATE.mkdir(mode=0o755, parents=True, exist_ok=True)
    place = Path(path)
    partial = place.with_name(f".{place.name}.partial")
    # The folder is 0700 by itself.
    with tempfile.TemporaryDirectory(dir=STATE, prefix=".cloud-init-") as scratch:
        for name, text in content.items():
            (Path(scratch) / name).write_text(text, encoding="utf-8")
        try:
            # What somebody has put there, such as a link or a file of their own, is not written to.
            partial.unlink(missing_ok=True)
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY, 0o600))
            argv = [maker, "-quiet", "-output", str(partial), "-volid", "cidata", "-joliet", "-rock"]
            run([*argv, "-appid", digest(content), scratch], label=maker)
            _settle(partial, place, 0o600)
        finally:
            partial.unlink(missing_ok=True)


def _settle(partial: Path, place: Path, mode: int) -> None:
    """Gives a finished file its name, once it is on disk."""
    partial.chmod(mode)
    for path in (partial, place.parent):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if path is partial:
            partial.rename(place)


# ---- the key of a guest's minion ----


def private_key(name: str) -> Path:
    """Names the file with the private half."""
    return KEYS / name / "minion.pem"


def public_key(name: str) -> str:
    """Reads the public half; empty if there is no key."""
    try:
        return (KEYS / name / "minion.pub").read_text(encoding="ascii")
    except FileNotFoundError:
        return ""


def make_key(name: str) -> None:
    """Makes the key pair of a guest's minion, unless it is there."""
    if public_key(name):
        return
    folder = KEYS / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public = key.public_key().public_bytes(serialization.Encoding.PEM, form)
    # The public half comes last: with it the pair is whole.
    for path, content, mode in ((private_key(name), private, 0o400), (folder / "minion.pub", public, 0o444)):
        partial = path.with_name(f".{path.name}.partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as handle:
            handle.write(content)
        _settle(partial, path, mode)


def accepted(name: str) -> bool:
    """Whether the master has accepted this very key."""
    try:
        return (KEYS / name / "accepted").read_text(encoding="ascii") == public_key(name) != ""
    except FileNotFoundError:
        return False


def have_accepted(name: str, controller: str, publish: Callable[..., Any]) -> None:
    """Has the key of a guest's minion, accepted by the master.

    Args:
        name: the guest.
        controller: the minion id of the master's own minion.
        publish: Salt's ``publish.publish``.

    Raises:
        ValueError: the master did not accept it, with its reason.
    """
    if not controller:
        raise ValueError(f"{name}:cloud_init:minion: needs a master, and libvirt:pki:ca_server names none")
    make_key(name)
    answers = publish(controller, "guest_minion.accept", [name, public_key(name)], timeout=ACCEPT_SECONDS)
    answer = answers.get(controller) if isinstance(answers, dict) else None
    if not isinstance(answer, dict) or answer.get("accepted") != name:
        why = answer.get("refused") if isinstance(answer, dict) else answer
        why = why or "it did not answer, or the master does not let this host ask (see bootstrap pki --host)"
        raise ValueError(f"{name}:cloud_init:minion: {controller} did not accept the guest's key: {why}")
    (KEYS / name / "accepted").write_text(public_key(name), encoding="ascii")


def _script(name: str, config: Mapping[str, Any], master_key: Path) -> str:
    """Writes what makes a guest a minion; arguments as of :func:`files`."""
    parts = {
        "private": private_key(name).read_bytes(),
        "public": public_key(name).encode(),
        "master_key": master_key.read_bytes(),
        "config": document(config).encode(),
    }
    text = _SCRIPT
    for key, content in parts.items():
        text = text.replace("{" + key + "}", base64.encodebytes(content).decode().rstrip())
    return text
