"""Hypervisors with keys of their own, as the master and the minions have them, for tests of the inventory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from _utils import inventory_words

UUID = "7e15f46f-a06d-4d56-a2f0-7d2e1103df28"
OTHER = "11111111-a06d-4d56-a2f0-7d2e1103df28"
GUEST: dict[str, Any] = {
    "name": "web", "state": "running", "cpus": 1, "memory_mib": 128, "addresses": ["192.0.2.7"], "started": None,
    "autostart": False, "persistent": True, "consoles": ["vnc"],
}  # fmt: skip
FIGURES: dict[str, Any] = {"cpus": 2, "cpu_used": 0.5, "memory_mib": 1024, "memory_used_mib": 300, "load": 0.7}
KEYS = {name: rsa.generate_private_key(public_exponent=65537, key_size=2048) for name in ("hv1", "hv2", "guest")}


def accept(folder: Path) -> Path:
    """Put the public keys where a master has those of its minions."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, key in KEYS.items():
        public = key.public_key()
        (folder / name).write_bytes(
            public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
    return folder


def voice(host: str, epoch: int = 1, interval: float = 5.0, key: str = "") -> Any:
    """Return what numbers and signs a host's messages, or those of somebody else in its name."""
    return inventory_words.voice(host, KEYS[key or host], epoch, interval)


def event(sent: tuple[str, dict[str, str]], sender: str = "hv1") -> dict[str, Any]:
    """Return a message as the master's bus has it."""
    tag, data = sent
    return {"tag": tag, "data": {"id": sender, "cmd": "_minion_event", "tag": tag, "data": data}}


def whole(by: Any, guests: dict[str, Any] | None = None, nonce: str = "") -> dict[str, Any]:
    """Return the one message that tells everything."""
    records = {UUID: GUEST} if guests is None else guests
    return event(by.message("host/all", set={"guests": records}, part=[1, 1], nonce=nonce, figures=FIGURES))
