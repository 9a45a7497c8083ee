"""A controller after nginx/, as seen on it. Test Kitchen runs this too."""

from __future__ import annotations

import json

# Runs on the host: asks nginx where one of its names leads, for a host, and believes the authority for the web alone.
CLIENT = """
import http.client, json, ssl, sys
name, path, asked = sys.argv[1:]
believed = ssl.create_default_context(cafile="/etc/pki/web/ca-cert.pem")
connection = http.client.HTTPSConnection(name, timeout=60, context=believed)
connection.request("GET", path, headers={"Host": asked})
answer = connection.getresponse()
print(json.dumps([answer.status, dict(answer.getheaders())]))
"""
OWN = "/etc/nginx/conf.d/hypervisor.conf"


def name_of(host):
    """The first name of the page."""
    text = host.file(OWN).content_string
    return next(line.split()[1].rstrip(";") for line in text.splitlines()
                if "server_name " in line and "invalid" not in line)  # fmt: skip


def test_it_runs_now_and_after_a_boot_within_its_limits(host):
    unit = host.service("nginx")
    assert (unit.is_running, unit.is_enabled) == (True, True)
    shown = host.check_output("systemctl show nginx -p NoNewPrivileges -p ProtectSystem -p ProtectHome")
    assert set(shown.split()) == {"NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes"}
    main = host.check_output("systemctl show nginx -p MainPID --value")
    seen = f"/proc/{main}/root"
    assert host.file(f"{seen}/etc/nginx/nginx.conf").exists
    for closed in ("/etc/salt", "/etc/pki/hypervisor"):
        assert host.run("ls -A %s", f"{seen}{closed}").stdout == ""
        assert host.run("ls -A %s", closed).stdout


def test_it_listens_on_its_two_ports(host):
    printed = host.check_output("ss -Hltnp")
    own = {line.split()[3].rpartition(":")[2] for line in printed.splitlines() if '"nginx"' in line}
    assert own == {"80", "443"}


def test_keys_are_closed_and_the_certificate_is_of_the_authority_for_the_web(host):
    for file in host.run("ls /etc/pki/web/*-key.pem").stdout.split():
        assert (host.file(file).mode, host.file(file).user) == (0o400, "root")
    assert "server-key.pem" in host.run("ls /etc/pki/web").stdout
    verified = host.run("openssl verify -CAfile /srv/salt/hypervisor-pki/web.crt /etc/pki/web/server-cert.pem")
    assert verified.rc == 0, verified.stderr
    # An authority that is not there would verify nothing either.
    assert host.run("test -s /srv/salt/hypervisor-pki/libvirt.crt").rc == 0
    assert host.run("openssl verify -CAfile /srv/salt/hypervisor-pki/libvirt.crt /etc/pki/web/server-cert.pem").rc != 0


def test_all_other_files_are_the_distributions(host):
    changed = host.run("dpkg --verify nginx nginx-common").stdout.splitlines()
    # Images of the lab have no documentation.
    assert [line for line in changed if "/usr/share/" not in line] == []
    assert host.file(OWN).mode == 0o644
    assert host.run("nginx -t -q").rc == 0


def test_it_answers_by_its_name_and_to_no_other(host):
    name = name_of(host)
    done = host.run("python3 -c %s %s /api/run %s", CLIENT, name, name)
    assert done.rc == 0, done.stderr
    status, headers = json.loads(done.stdout)
    assert status == 405
    assert headers["Server"] == "nginx"
    assert headers["Strict-Transport-Security"].startswith("max-age=")
    # The page's own server refuses the method there and says more: this is the one for other names.
    done = host.run("python3 -c %s %s /api/run elsewhere.example", CLIENT, name)
    assert done.rc == 0, done.stderr
    status, headers = json.loads(done.stdout)
    assert status == 404
    assert headers["Server"] == "nginx"
    assert "Strict-Transport-Security" not in headers
