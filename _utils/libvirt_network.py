"""What a virtual network must be, what it is, and the steps between: no command is run here.

The pillar decides about a network's addresses, DHCP, DNS, domain, MTU, how it reaches the outside, port
groups and VLANs, all of each. What libvirt fills in (uuid, mac, names of bridges) and what somebody
added besides (bandwidth, routes, options of dnsmasq) is no difference, and stays.
"""

from __future__ import annotations

import ipaddress
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_OWNED = ("mtu", "domain", "ip", "portgroup", "virtualport", "vlan")
_OWNED_DNS = ("forwarder", "host", "txt")
# What libvirt can change while guests are attached; by what it calls the section.
_LIVE = {"ranges": "ip-dhcp-range", "hosts": "ip-dhcp-host", "dns_hosts": "dns-host", "dns_txt": "dns-txt"}
# In this order an entry never meets another of its address, and DHCP always has an entry, without which
# libvirt forgets what a guest boots. What is not here follows, each old entry before its new one.
_ORDER = (("hosts", "modify"), ("ranges", "add-last"), ("ranges", "delete"), ("hosts", "delete"), ("hosts", "add-last"))


class Facts(NamedTuple):
    """What a host says about a network.

    Attributes:
        config: the XML that the next start uses; None where libvirt does not know the network.
        live: the XML in use; None when the network does not run.
        persistent: whether it is kept when it stops.
        autostart: whether libvirt starts it by itself.
        plugs: the interfaces of running guests in it, as pairs of a guest and a device of the host.
    """

    config: str | None = None
    live: str | None = None
    persistent: bool = True
    autostart: bool = False
    plugs: tuple[tuple[str, str], ...] = ()


class Step(NamedTuple):
    """One thing to do: an action, its arguments, and what a state's changes say of it."""

    action: str
    arguments: tuple[Any, ...]
    changes: dict[str, Any]


class Plan(NamedTuple):
    """Steps in their order; ``waits`` names the guests because of which something has to wait."""

    steps: tuple[Step, ...]
    waits: tuple[str, ...] = ()


def facts_of(**values: Any) -> Facts:
    """Collects what a host says; classes do not pass Salt's loader.

    Args:
        values: the attributes of Facts.

    Returns:
        Them, as :func:`plan` takes them.
    """
    return Facts(**values)


# ---- normal forms ----


def wanted(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the normal form of what the pillar asks for.

    Args:
        spec: the network's pillar, judged by the schema and by libvirt_rules.

    Returns:
        Values by name. What is empty is left out; ``bridge`` too if libvirt is to choose.
    """
    dns = spec.get("dns") or {}
    form: dict[str, Any] = {
        "forward": spec["forward"],
        "device": spec.get("forward_device"),
        "bridge": spec.get("bridge"),
        "mtu": spec.get("mtu"),
        "domain": spec.get("domain"),
        "domain_local": bool(spec.get("domain") and spec.get("domain_local")),
        "nat_ipv6": bool((spec.get("ipv6_config") or {}).get("nat")),
        "dns_off": not dns.get("enable", True),
        "dns_forwarders": [_ip(address) for address in dns.get("forwarders") or []],
        "dns_hosts": {_ip(ip): sorted(names) for ip, names in (dns.get("hosts") or {}).items()},
        "dns_txt": dict(dns.get("txt") or {}),
        "virtualport": _wanted_port(spec.get("virtualport")),
        "vlan": _wanted_vlan(spec.get("vlan")),
        "portgroups": {
            name: {"default": bool(group.get("default")), "vlan": _wanted_vlan(group.get("vlan"))}
            for name, group in (spec.get("portgroups") or {}).items()
        },
    }
    for family, host_key in (("ipv4", "mac"), ("ipv6", "id")):
        if config := spec.get(f"{family}_config"):
            form[family] = _wanted_ip(config, host_key)
    return _filled(form)


def _wanted_ip(config: Mapping[str, Any], host_key: str) -> dict[str, Any]:
    """Returns the normal form of the addresses of one family."""
    given = ipaddress.ip_interface(config["cidr"])
    own = given.network[1] if given.ip == given.network.network_address else given.ip
    bootp = config.get("bootp") or {}
    return _filled({
        "address": f"{own}/{given.network.prefixlen}",
        "ranges": {f"{_ip(one['start'])} {_ip(one['end'])}": {} for one in config.get("dhcp_ranges") or []},
        "hosts": {
            guest.lower(): _filled({host_key: guest.lower(), "ip": _ip(one["ip"]), "name": one.get("name")})
            for guest, one in (config.get("hosts") or {}).items()
        },
        "tftp": config.get("tftp"),
        "bootp": _filled({"file": bootp.get("file"), "server": bootp.get("server")}),
    })  # fmt: skip


def _wanted_port(port: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the normal form of a virtual port."""
    return _filled({"type": (port or {}).get("type"), "profile": (port or {}).get("profile")})


def _wanted_vlan(vlan: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the normal form of VLAN tags."""
    if not vlan:
        return {}
    tags = {str(tag): "" for tag in vlan["tags"]}
    if "native" in vlan:
        tags[str(vlan["native"])] = vlan.get("native_mode", "untagged")
    return {"trunk": vlan.get("trunk", len(tags) > 1), "tags": tags}


def normal(text: str) -> dict[str, Any]:
    """Returns the normal form of libvirt's XML."""
    root = _parse(text)
    forward = root.find("forward")
    form: dict[str, Any] = {
        "forward": "isolated" if forward is None else forward.get("mode", "nat"),
        "device": _get(root, "forward", "dev") or _get(root, "forward/interface", "dev"),
        "bridge": _get(root, "bridge", "name"),
        "mtu": int(_get(root, "mtu", "size") or 0),
        "domain": _get(root, "domain", "name"),
        "domain_local": _get(root, "domain", "localOnly") == "yes",
        "nat_ipv6": _get(root, "forward/nat", "ipv6") == "yes",
        "dns_off": _get(root, "dns", "enable") == "no",
        "dns_forwarders": [
            _ip(one.get("addr", "")) or f"domain {one.get('domain')}" for one in root.findall("dns/forwarder")
        ],
        "dns_hosts": {
            _ip(one.get("ip", "")): sorted(str(name.text) for name in one.findall("hostname"))
            for one in root.findall("dns/host")
        },
        "dns_txt": {one.get("name"): one.get("value") for one in root.findall("dns/txt")},
        "virtualport": _filled({
            "type": _get(root, "virtualport", "type"),
            "profile": _get(root, "virtualport/parameters", "profileid"),
        }),
        "vlan": _normal_vlan(root),
        "portgroups": {
            one.get("name"): {"default": one.get("default") == "yes", "vlan": _normal_vlan(one)}
            for one in root.findall("portgroup")
        },
    }  # fmt: skip
    for family, element in _ips(root).items():
        form[family] = _normal_ip(element)
    return _filled(form)


def _ips(root: ET.Element) -> dict[str, ET.Element]:
    """Returns the addresses of a network by family; a second one of a family has a number added."""
    found: dict[str, ET.Element] = {}
    for element in root.findall("ip"):
        family = element.get("family") or "ipv4"
        found[family if family not in found else f"{family} {len(found)}"] = element
    return found


def _normal_ip(element: ET.Element) -> dict[str, Any]:
    """Returns the normal form of an <ip> element."""
    prefix = element.get("prefix") or element.get("netmask") or ("128" if element.get("family") == "ipv6" else "32")
    given = ipaddress.ip_interface(f"{element.get('address')}/{prefix}")
    hosts = [
        _filled({
            "mac": one.get("mac", "").lower(), "id": one.get("id", "").lower(),
            "ip": _ip(one.get("ip", "")), "name": one.get("name"),
        })
        for one in element.findall("dhcp/host")
    ]  # fmt: skip
    return _filled({
        "address": str(given),
        "ranges": {
            f"{_ip(one.get('start', ''))} {_ip(one.get('end', ''))}": {}
            for one in element.findall("dhcp/range")
        },
        "hosts": {one.get("mac") or one.get("id") or one.get("name") or one["ip"]: one for one in hosts},
        "tftp": _get(element, "tftp", "root"),
        "bootp": _filled({
            "file": _get(element, "dhcp/bootp", "file"),
            "server": _get(element, "dhcp/bootp", "server"),
        }),
    })  # fmt: skip


def _normal_vlan(parent: ET.Element) -> dict[str, Any]:
    """Returns the normal form of the VLAN tags of a network or a port group."""
    vlan = parent.find("vlan")
    if vlan is None:
        return {}
    tags = {one.get("id", ""): one.get("nativeMode", "") for one in vlan.findall("tag")}
    return {"trunk": vlan.get("trunk", "yes" if len(tags) > 1 else "no") == "yes", "tags": tags}


# ---- XML ----


def definition(name: str, spec: Mapping[str, Any], existing: str | None = None) -> str:
    """Writes the XML of a network.

    Args:
        name: the network.
        spec: its pillar.
        existing: the XML that it has; what the pillar does not decide about is taken over from it.

    Returns:
        XML for ``virsh net-define``.
    """
    form = wanted(spec)
    root = ET.Element("network")
    ET.SubElement(root, "name").text = name
    if existing is not None:
        old = _parse(existing)
        # A bridge of the host has nothing in common with a network of libvirt's own.
        if (normal(existing)["forward"] == "bridge") == (form["forward"] == "bridge"):
            root = old
            root.attrib.pop("connections", None)
        else:
            ET.SubElement(root, "uuid").text = old.findtext("uuid")
    for tag in _OWNED:
        _drop(root, tag)
    _write_forward(root, form)
    if "bridge" in form:
        _child(root, "bridge").set("name", form["bridge"])
    if "mtu" in form:
        ET.SubElement(root, "mtu", {"size": str(form["mtu"])})
    if "domain" in form:
        local = {"localOnly": "yes"} if form.get("domain_local") else {}
        ET.SubElement(root, "domain", {"name": form["domain"], **local})
    _write_dns(root, form)
    for family in ("ipv4", "ipv6"):
        if family in form:
            root.append(_ip_element(family, form[family]))
    _write_ports(root, form)
    return ET.tostring(root, encoding="unicode")


def _write_forward(root: ET.Element, form: Mapping[str, Any]) -> None:
    """Writes how the network reaches the outside; the ports of an address translation stay."""
    nat = root.find("forward/nat")
    _drop(root, "forward")
    if form["forward"] == "isolated":
        return
    forward = ET.SubElement(root, "forward", {"mode": form["forward"]})
    if "device" in form:
        forward.set("dev", form["device"])
    if form["forward"] == "nat":
        if nat is not None:
            forward.append(nat)
            nat.attrib.pop("ipv6", None)
        if form.get("nat_ipv6"):
            _child(forward, "nat").set("ipv6", "yes")


def _write_dns(root: ET.Element, form: Mapping[str, Any]) -> None:
    """Writes what the network's DNS server answers by itself, and whom it asks."""
    dns = _child(root, "dns")
    for tag in _OWNED_DNS:
        _drop(dns, tag)
    dns.attrib.pop("enable", None)
    if form.get("dns_off"):
        dns.set("enable", "no")
    for address in form.get("dns_forwarders", []):
        ET.SubElement(dns, "forwarder", {"addr": address})
    for kind in ("dns_txt", "dns_hosts"):
        for key, value in form.get(kind, {}).items():
            dns.append(_entry(kind, key, value))
    if not dns.attrib and not len(dns):
        root.remove(dns)


def _ip_element(family: str, form: Mapping[str, Any]) -> ET.Element:
    """Writes the addresses of one family."""
    address, _, prefix = form["address"].partition("/")
    element = ET.Element("ip", {"family": family, "address": address, "prefix": prefix})
    if "tftp" in form:
        ET.SubElement(element, "tftp", {"root": form["tftp"]})
    if {"ranges", "hosts", "bootp"} & form.keys():
        dhcp = ET.SubElement(element, "dhcp")
        for kind in ("ranges", "hosts"):
            for key, value in form.get(kind, {}).items():
                dhcp.append(_entry(kind, key, value))
        if "bootp" in form:
            ET.SubElement(dhcp, "bootp", dict(form["bootp"]))
    return element


def _entry(kind: str, key: str, value: Any) -> ET.Element:
    """Writes one entry that libvirt can also change while the network runs."""
    if kind == "ranges":
        start, _, end = key.partition(" ")
        return ET.Element("range", {"start": start, "end": end})
    if kind == "hosts":
        return ET.Element("host", dict(value))
    if kind == "dns_txt":
        return ET.Element("txt", {"name": key, "value": value})
    host = ET.Element("host", {"ip": key})
    for name in value:
        ET.SubElement(host, "hostname").text = name
    return host


def _write_ports(root: ET.Element, form: Mapping[str, Any]) -> None:
    """Writes the switch's ports: their kind, VLAN tags and groups."""
    if "virtualport" in form:
        port = ET.SubElement(root, "virtualport", {"type": form["virtualport"]["type"]})
        if "profile" in form["virtualport"]:
            ET.SubElement(port, "parameters", {"profileid": form["virtualport"]["profile"]})
    _write_vlan(root, form.get("vlan"))
    for name, group in form.get("portgroups", {}).items():
        element = ET.SubElement(root, "portgroup", {"name": name})
        if group["default"]:
            element.set("default", "yes")
        _write_vlan(element, group["vlan"])


def _write_vlan(parent: ET.Element, vlan: Mapping[str, Any] | None) -> None:
    """Writes VLAN tags."""
    if not vlan:
        return
    element = ET.SubElement(parent, "vlan", {"trunk": "yes"} if vlan["trunk"] else {})
    for tag, mode in vlan["tags"].items():
        ET.SubElement(element, "tag", {"id": tag, **({"nativeMode": mode} if mode else {})})


# ---- plans ----


def differs(form: Mapping[str, Any], want: Mapping[str, Any]) -> dict[str, Any]:
    """Compares two normal forms.

    Args:
        form: what there is.
        want: what there should be. The bridge's name is compared if it has one.

    Returns:
        Old and new value of whatever differs, by a path such as ``ipv4:hosts:52:54:00:00:00:01``.
    """
    old, new = dict(_flat(form)), dict(_flat(want))
    if "bridge" not in want:
        old.pop("bridge", None)
    return {
        key: {"old": old.get(key), "new": new.get(key)}
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def _flat(form: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the values of a normal form; each entry of DHCP and DNS is one value."""
    for key, value in form.items():
        if key in _LIVE or key == "portgroups":
            yield from ((f"{key}:{name}", entry or True) for name, entry in value.items())
        elif key.startswith("ipv"):
            yield from ((f"{key}:{path}", entry) for path, entry in _flat(value))
        else:
            yield key, value


def _fixed(form: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a normal form without what libvirt can change while the network runs."""
    rest = {key: value for key, value in form.items() if key not in _LIVE and key != "portgroups"}
    return {key: _fixed(value) if key.startswith("ipv") else value for key, value in rest.items()}


def plan(name: str, spec: Mapping[str, Any], facts: Facts) -> Plan:
    """Finds the steps from what a host has to what the pillar asks for.

    Args:
        name: the network.
        spec: its pillar; ``ensure`` is "running" or "defined".
        facts: what the host has.

    Returns:
        The steps. A change that needs a restart waits while guests are attached, unless the pillar
        allows it; then their interfaces are plugged in again, as they are when it had been stopped.
    """
    want = wanted(spec)
    have = normal(facts.config) if facts.config is not None and facts.persistent else None
    live = normal(facts.live) if facts.live is not None else None
    steps = []
    if have is None or differs(have, want):
        text = definition(name, spec, facts.config)
        steps.append(Step("define", (text,), {"definition": differs(have or {}, want)}))
    again = live is not None and bool(differs(_fixed(live), _fixed(want)))
    # Guests in a host's own bridge stay in it whatever becomes of libvirt's network.
    known = live or (normal(facts.config) if facts.config is not None else None)
    cut = facts.plugs if known is not None and known["forward"] != "bridge" else ()
    held = again and cut and not spec.get("allow_restart")
    if again and not held:
        steps.append(Step("virsh", ("net-destroy", "--", name), {}))
    if (spec.get("ensure", "running") == "running" and live is None) or (again and not held):
        old = "stopped" if live is None else "running with another definition"
        steps.append(Step("virsh", ("net-start", "--", name), {"state": {"old": old, "new": "running"}}))
        if want["forward"] != "bridge":
            steps += [Step("plug", (name, guest, device), {}) for guest, device in cut]
    elif live is not None:
        steps += _updates(name, facts.live or "", live, want)
    autostart = spec.get("autostart", True)
    if autostart != facts.autostart:
        argv = ("net-autostart", *(() if autostart else ("--disable",)), "--", name)
        steps.append(Step("virsh", argv, {"autostart": {"old": facts.autostart, "new": autostart}}))
    waits = tuple(dict.fromkeys(guest for guest, _ in cut)) if held else ()
    return Plan(tuple(steps), waits)


def _updates(name: str, text: str, live: Mapping[str, Any], want: Mapping[str, Any]) -> list[Step]:
    """Finds what changes in a running network without a restart: old entries leave before new ones come."""
    scopes: list[tuple[str, Mapping[str, Any], Mapping[str, Any], tuple[str, ...]]] = [("", live, want, ())]
    for index, family in enumerate(_ips(_parse(text))):
        # Not where the network's own address waits for a restart.
        if family in want and live[family]["address"] == want[family]["address"]:
            scopes.append((f"{family}:", live[family], want[family], ("--parent-index", str(index))))
    steps: list[tuple[int, Step]] = []
    for prefix, old, new, options in scopes:
        for kind, key, before, after in _entries(old, new):
            change = {"live": {f"{prefix}{kind}:{key}": {"old": before, "new": after}}}
            for rank, (verb, value) in enumerate(_verbs(kind, before, after)):
                xml = ET.tostring(_entry(kind, key, value), encoding="unicode")
                argv = ("net-update", name, verb, _LIVE[kind], xml, "--live", *options)
                place = _ORDER.index((kind, verb)) if (kind, verb) in _ORDER else len(_ORDER) + rank
                steps.append((place, Step("virsh", argv, change)))
    ordered = [step for _, step in sorted(steps, key=lambda one: one[0])]
    return ordered + _group_updates(name, live.get("portgroups", {}), want.get("portgroups", {}))


def _verbs(kind: str, before: Any, after: Any) -> list[tuple[str, Any]]:
    """Finds how an entry is changed: libvirt can modify hosts of DHCP, everything else leaves and comes anew."""
    if kind == "hosts" and None not in (before, after):
        return [("modify", after)]
    pairs = (("delete", before), ("add-last", after))
    return [(verb, value) for verb, value in pairs if value is not None]


def _entries(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[str, str, Any, Any]]:
    """Yields kind, key, old and new value of each entry that differs."""
    for kind in _LIVE:
        for key in sorted(old.get(kind, {}).keys() | new.get(kind, {}).keys()):
            before, after = old.get(kind, {}).get(key), new.get(kind, {}).get(key)
            if before != after:
                yield kind, key, before, after


def _group_updates(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Step]:
    """Finds what changes in the port groups of a running network."""
    steps = []
    # There is one default at a time, so whichever becomes it comes last.
    late = {key for key, group in new.items() if group["default"]}
    for key in sorted(old.keys() | new.keys(), key=lambda one: (one in new, one in late, one)):
        if old.get(key) != new.get(key):
            verb = "delete" if key not in new else "modify" if key in old else "add-last"
            xml = _group_xml(key, new.get(key) or old[key])
            change = {"live": {f"portgroups:{key}": {"old": old.get(key), "new": new.get(key)}}}
            steps.append(Step("virsh", ("net-update", name, verb, "portgroup", xml, "--live"), change))
    return steps


def _group_xml(name: str, group: Mapping[str, Any]) -> str:
    """Writes one port group."""
    root = ET.Element("network")
    _write_ports(root, {"portgroups": {name: group}})
    return ET.tostring(root[0], encoding="unicode")


def plugs(domain: str, name: str) -> list[str]:
    """Finds a guest's interfaces in a network.

    Args:
        domain: the guest's XML.
        name: the network.

    Returns:
        The host's device of each, an empty text for one that does not run.
    """
    return [
        _get(one, "target", "dev") or ""
        for one in _parse(domain).iter("interface")
        if _get(one, "source", "network") == name
    ]


# ---- elements ----


def _filled(form: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what is empty."""
    return {key: value for key, value in form.items() if value not in (None, "", 0, False, [], {})}


def _ip(text: str) -> str:
    """Writes an address in its usual form."""
    return str(ipaddress.ip_address(text)) if text else ""


def _parse(text: str) -> ET.Element:
    """Reads XML."""
    return ET.fromstring(text)  # noqa: S314  this host's own libvirt wrote it


def _get(root: ET.Element, path: str, attribute: str) -> str | None:
    """Returns an attribute of the element at a path; None if either is missing."""
    found = root.find(path)
    return None if found is None else found.get(attribute)


def _child(parent: ET.Element, tag: str) -> ET.Element:
    """Returns a child, made if there is none."""
    found = parent.find(tag)
    return ET.SubElement(parent, tag) if found is None else found


def _drop(parent: ET.Element, tag: str) -> None:
    """Takes away all children of a tag."""
    for found in parent.findall(tag):
        parent.remove(found)
