"""The file of the page's site: what is passed on, what is refused, and nothing that a pillar could smuggle in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from _utils import formula_config, formula_schema, formula_vocabulary, nginx_config, nginx_rules

ROOT = Path(__file__).resolve().parents[2]
DATA = {
    f"{name}.yaml": yaml.safe_load((ROOT / "nginx" / f"{name}.yaml").read_text())
    for name in ("defaults", "osmap", "schema")
}


def judged(pillar: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The merged configuration and what is wrong with it."""
    host = {"os_family": "Debian", "os": "Debian", "osfinger": "Debian-12"}
    merged, errors = formula_config.assemble(
        "nginx", DATA, host, pillar, formula_vocabulary.load, formula_schema.errors
    )
    found = [str(error) for error in errors] or [f"{path}: {text}" for path, text in nginx_rules.errors(merged)]
    return merged, "\n".join(found)


def site(**pillar: Any) -> str:
    """The file for a pillar."""
    merged, wrong = judged({"server_names": ["page.example.org", "192.0.2.10"]} | pillar)
    assert wrong == ""
    return nginx_config.site(merged, "/c.pem", "/k.pem", "/etc/pki/web", "/srv/web")


def location(text: str, path: str) -> str:
    """What stands in one location."""
    (found,) = re.findall(rf"^    location = {re.escape(path)} {{\n(.*?)^    }}", text, re.MULTILINE | re.DOTALL)
    return str(found)


def test_each_location_names_what_it_passes_on():
    text = site(consoles={"hv1": "192.0.2.11"})
    assert "proxy_pass_request_headers off;" in text
    assert set(re.findall(r"proxy_set_header (\S+)", location(text, "/api/run"))) == {
        "Host", "Connection", "Accept", "Content-Type", "X-Auth-Token",
    }  # fmt: skip
    told = set(re.findall(r"proxy_set_header (\S+)", text))
    assert not told & {"Cookie", "Origin", "Referer", "X-Forwarded-For", "Authorization", "User-Agent"}
    hidden = set(re.findall(r"proxy_hide_header ([^;]+);", text))
    assert {"Set-Cookie", "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"} <= hidden


def test_no_location_replaces_the_headers_of_answers():
    text = site(consoles={"hv1": "192.0.2.11"})
    assert all(line.startswith("    add_header ") for line in text.splitlines() if "add_header" in line)
    assert text.count("add_header Content-Security-Policy") == 1


def test_a_console_leads_to_its_host_alone_with_both_certificates():
    text = site(consoles={"hv1": "192.0.2.11", "hv2.lan": "2001:db8::12"}, console={"port": 17000})
    one, two = location(text, "/websockify/hv1"), location(text, "/websockify/hv2.lan")
    assert "proxy_pass https://192.0.2.11:17000/websockify;" in one
    assert "proxy_ssl_name hv1;" in one
    assert "proxy_pass https://[2001:db8::12]:17000/websockify;" in two
    assert "proxy_ssl_name hv2.lan;" in two
    for part in (one, two):
        assert "proxy_ssl_verify on;" in part
        assert "proxy_ssl_certificate /etc/pki/web/console-cert.pem;" in part
    assert "websockify" not in site()


def test_another_port_stands_in_the_redirect_the_policy_and_the_origin():
    text = site(ports={"http": 8080, "https": 8443}, consoles={"hv1": "192.0.2.11"})
    assert "return 308 https://$host:8443$request_uri;" in text
    assert "connect-src 'self' wss://$host:8443;" in text
    assert '"https://$host:8443"' in location(text, "/websockify/hv1")
    assert "$host:" not in site()


def test_denied_networks_come_first_and_an_allowed_one_closes_the_rest():
    text = site(networks={"allow": ["192.0.2.0/24"], "deny": ["192.0.2.9"]})
    assert re.findall(r"^    ((?:allow|deny) .*);", text, re.MULTILINE) == [
        "deny 192.0.2.9", "allow 192.0.2.0/24", "deny all",
    ]  # fmt: skip
    assert "deny all" not in site(networks={"deny": ["192.0.2.9"]})


def test_sizes_stand_where_nginx_takes_them():
    text = site(hash={"server_names_hash_max_size": 1024, "types_hash_bucket_size": 128})
    assert "\nserver_names_hash_max_size 1024;" in text
    assert "\n    types_hash_bucket_size 128;" in text


def test_without_ipv6_nothing_listens_there():
    assert "[::]" in site()
    assert "[::]" not in site(ipv6=False)


def test_names_are_written_as_browsers_send_them():
    assert [nginx_config.host(name) for name in ("Page.Example", "192.0.2.1", "2001:DB8::0:1")] == [
        "page.example", "192.0.2.1", "[2001:db8::1]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pillar", "where"),
    [
        ({"server_names": ["a; return 200"]}, "nginx:server_names:0"),
        ({"server_names": ["$host"]}, "nginx:server_names:0"),
        ({"server_names": ["a\nb"]}, "nginx:server_names:0"),
        ({"server_names": ["*.example.org"]}, "nginx:server_names:0"),
        ({"server_names": ["::"]}, "nginx:server_names:0"),
        ({"networks": {"allow": ["all; allow"]}}, "nginx:networks:allow:0"),
        ({"networks": {"deny": ["192.0.2.1/24"]}}, "nginx:networks:deny:0"),
        ({"consoles": {"hv1": "hv1.example.org"}}, "nginx:consoles:hv1"),
        ({"consoles": {"hv1;": "192.0.2.1"}}, "nginx:consoles"),
        ({"consoles": {"../x": "192.0.2.1"}}, "nginx:consoles"),
        ({"hash": {"server_names_hash_bucket_size": "64; include /etc/x"}}, "nginx:hash:server_names_hash_bucket_size"),
        ({"tls": {"source": "files"}}, "nginx:tls:certificate"),
        ({"tls": {"source": "files", "certificate": "/a.pem", "key": "/k.pem; x"}}, "nginx:tls:key"),
        ({"tls": {"certificate": "/a.pem"}}, "nginx:tls:certificate"),
        ({"ports": {"http": 443}}, "nginx:ports:https"),
        ({"api": {"port": 0}}, "nginx:api:port"),
        ({"service": "nginx; reboot"}, "nginx:service"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(pillar, where):
    _, wrong = judged(pillar)
    assert where in wrong


def test_every_pillar_that_is_taken_stays_in_its_place():
    """Nothing of a value ends a directive or opens a block."""
    text = site(consoles={"hv1": "192.0.2.11"}, networks={"allow": ["2001:db8::/64"]})
    assert text.count("{") == text.count("}")
    assert text.count("\nserver {") == 3
