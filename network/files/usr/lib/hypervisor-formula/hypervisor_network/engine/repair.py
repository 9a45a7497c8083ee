"""The last resort on the way back: the runtime is set by `ip` to what it was, where the backend has not done so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from hypervisor_network.backends import common
from hypervisor_network.backends.contract import Snapshot
from hypervisor_network.model import OPENVSWITCH

from . import runtime
from .host import LocalHost

Argv = list[str]


def commands(before: Snapshot, now: Snapshot, names: Sequence[str]) -> Iterator[Argv]:
    """Returns the commands that bring interfaces back, in their order. Pure.

    Args:
        before: the runtime to come back to.
        now: the runtime as it is.
        names: the interfaces that a change has touched; no other is.
    """
    old, new = before.names(), now.names()
    remade = [name for name in reversed(names) if name in old and name in new and _other(before, now, name)]
    for name in remade:
        yield ["ip", "link", "delete", "dev", name]
    now = _without(now, remade)
    new = now.names()
    for name in names:
        if name in new and name not in old and runtime.kind(runtime.link_of(now, name) or {}) != OPENVSWITCH:
            yield ["ip", "link", "delete", "dev", name]
    for name in names:
        if name in old and name not in new:
            yield from _made(before, name)
    there = [name for name in names if name in old]
    for name in there:
        yield from _link(before, now, name)
    for name in there:
        yield from _addresses(before, now, name)
    for name in there:
        yield from _routes(before, now, name)


def _other(before: Snapshot, now: Snapshot, name: str) -> bool:
    """Says whether an interface is there as something else, so that it must be made anew."""
    old, new = runtime.link_of(before, name) or {}, runtime.link_of(now, name) or {}
    virtual = {runtime.kind(old), runtime.kind(new)}.isdisjoint({"ethernet", OPENVSWITCH})
    return virtual and common.form(old) != common.form(new)


def _without(now: Snapshot, names: Sequence[str]) -> Snapshot:
    """Returns the runtime as it is when links have been deleted."""
    gone = set(names)
    return replace(
        now,
        links=[
            {key: value for key, value in one.items() if key != "master" or value not in gone}
            for one in now.links
            if one["ifname"] not in gone
        ],
        addresses=[one for one in now.addresses if one["ifname"] not in gone],
        routes=[one for one in now.routes if one.get("dev") not in gone],
        routes6=[one for one in now.routes6 if one.get("dev") not in gone],
    )


def _made(before: Snapshot, name: str) -> Iterator[Argv]:
    """Makes a bridge, bond or VLAN that has gone; a card cannot be made."""
    link = runtime.link_of(before, name) or {}
    kind = runtime.kind(link)
    if kind == "bridge":
        yield ["ip", "link", "add", "name", name, "type", "bridge"]
    elif kind == "vlan":
        tag = ((link.get("linkinfo") or {}).get("info_data") or {}).get("id")
        yield ["ip", "link", "add", "link", str(link.get("link")), "name", name, "type", "vlan", "id", str(tag)]
    elif kind == "bond":
        mode = ((link.get("linkinfo") or {}).get("info_data") or {}).get("mode", "active-backup")
        yield ["ip", "link", "add", "name", name, "type", "bond", "mode", str(mode)]


def _link(before: Snapshot, now: Snapshot, name: str) -> Iterator[Argv]:
    """Sets master, MTU, MAC address and whether a link is up."""
    old, new = runtime.link_of(before, name) or {}, runtime.link_of(now, name) or {}
    # What is a port of Open vSwitch, its database alone decides.
    if old.get("master") != new.get("master") and runtime.DATAPATH not in {old.get("master"), new.get("master")}:
        if runtime.kind(runtime.link_of(before, str(old.get("master"))) or {}) == "bond":
            # A bond takes no port that is up.
            yield ["ip", "link", "set", "dev", name, "down"]
            new = {**new, "flags": []}
        yield ["ip", "link", "set", "dev", name, *(["master", old["master"]] if old.get("master") else ["nomaster"])]
    if old.get("address") and old.get("address") != new.get("address"):
        yield ["ip", "link", "set", "dev", name, "address", old["address"]]
    if old.get("mtu") and old.get("mtu") != new.get("mtu"):
        yield ["ip", "link", "set", "dev", name, "mtu", str(old["mtu"])]
    wanted = common.options(old)
    if wanted and wanted != common.options(new):
        yield from common.option_commands(name, wanted)
    mode = old.get("inet6_addr_gen_mode")
    if mode and mode != new.get("inet6_addr_gen_mode"):
        # The link-local address is made when the link comes up.
        yield ["ip", "link", "set", "dev", name, "down"]
        yield ["ip", "link", "set", "dev", name, "addrgenmode", mode]
        new = {**new, "flags": []}
    up = "UP" in old.get("flags", [])
    if up != ("UP" in new.get("flags", [])):
        yield ["ip", "link", "set", "dev", name, "up" if up else "down"]


def _wanted(one: dict[str, Any]) -> bool:
    """Says whether an address comes back by itself: what routers announce, and link-local ones."""
    return one.get("family") == "inet" or not (one.get("dynamic") or one.get("scope") == "link")


def _addresses(before: Snapshot, now: Snapshot, name: str) -> Iterator[Argv]:
    """Takes away and gives addresses."""

    def of(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
        return {
            f"{one['local']}/{one['prefixlen']}": one
            for one in runtime.addresses_of(snapshot, name)
            if one.get("local") and _wanted(one)
        }

    old, new = of(before), of(now)
    for address in new:
        if address not in old:
            yield ["ip", "address", "delete", address, "dev", name]
    for address, one in old.items():
        if address not in new:
            words = ["broadcast", one["broadcast"]] if one.get("broadcast") else []
            if one.get("dynamic"):
                # The client that has the lease renews it; until then it lasts.
                lasts = str(max(int(one.get("valid_life_time", 0)), 600))
                words += ["valid_lft", lasts, "preferred_lft", lasts]
            yield ["ip", "address", "add", address, "dev", name, *words]


def _routes(before: Snapshot, now: Snapshot, name: str) -> Iterator[Argv]:
    """Takes away and gives routes that the kernel does not make by itself."""
    for flag, old, new in (("-4", before.routes, now.routes), ("-6", before.routes6, now.routes6)):
        was = {tuple(_route(one)): one for one in old if _own(one, name)}
        is_now = {tuple(_route(one)): one for one in new if _own(one, name)}
        for words in is_now:
            if words not in was:
                yield ["ip", flag, "route", "delete", *words]
        for words, one in was.items():
            if words not in is_now:
                source = ["src", one["prefsrc"]] if one.get("prefsrc") else []
                yield ["ip", flag, "route", "replace", *words, *source]


def _own(one: dict[str, Any], name: str) -> bool:
    """Says whether a route is one that somebody has set on this interface."""
    return one.get("dev") == name and one.get("protocol") not in {"kernel", "ra"} and "type" not in one


def _route(one: dict[str, Any]) -> Iterator[str]:
    """Returns a route as words of `ip`."""
    yield str(one.get("dst"))
    for key, word in (("gateway", "via"), ("dev", "dev"), ("metric", "metric"), ("table", "table")):
        if one.get(key):
            yield from (word, str(one[key]))
    if one.get("protocol"):
        yield from ("proto", str(one["protocol"]))


def repair(host: LocalHost, before: Snapshot, now: Snapshot, names: Sequence[str]) -> list[str]:
    """Brings interfaces back.

    Returns:
        The commands that were run, as a person would write them, with the errors of those that failed.
    """
    said = []
    for argv in commands(before, now, names):
        done = host.run(argv, timeout=10)
        said.append(" ".join(argv) + (f" ({done.err.strip()})" if done.code else ""))
    return said
