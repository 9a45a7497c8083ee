"""The page's way in from other machines: each path, what is passed on, what is refused, and what a run changes."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import ssl
import time

import pytest
from front import answering

from lab import salt

pytestmark = pytest.mark.skipif("KITCHEN_HOSTNAME" in os.environ, reason="needs hypervisors besides the master")
MARKER = "marker-4711"
POLICY = {
    "default-src 'none'", "script-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    "require-trusted-types-for 'script'", "trusted-types 'none'",
}  # fmt: skip
PORTS = {"inventory": 18010, "console": 16999}
# Stands in for the inventory: says what it was asked, with headers that must not get through.
INVENTORY = """
import http.server, json, time
class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        for name, value in (("Set-Cookie", "a=b"), ("Access-Control-Allow-Origin", "*"), ("X-Accel-Redirect", "/"),
                            ("Cache-Control", "public"), ("ETag", '"7"'), ("Content-Security-Policy", "x")):
            self.send_header(name, value)
        body = json.dumps([self.path, sorted(self.headers.items())]).encode()
        stream = self.path.endswith("stream")
        self.send_header("Content-Length", "1000000" if stream else str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if stream:
            time.sleep(600)
http.server.ThreadingHTTPServer(("127.0.0.1", 18010), Echo).serve_forever()
"""
# Stands in for consoles: says who came and what was asked.
CONSOLE = """
import json, socket, ssl
own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile="/etc/pki/console/ca-cert.pem")
own.verify_mode = ssl.CERT_REQUIRED
own.load_cert_chain("/etc/pki/console/server-cert.pem", "/etc/pki/console/server-key.pem")
with socket.create_server(("", 16999)) as server:
    while True:
        try:
            with own.wrap_socket(server.accept()[0], server_side=True) as client:
                asked = client.recv(65536).decode()
                who = [value for part in client.getpeercert()["subject"] for _, value in part]
                client.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\n"
                               b"Connection: upgrade\\r\\nSec-WebSocket-Protocol: binary\\r\\n\\r\\n")
                client.sendall(json.dumps([who, asked]).encode())
        except OSError:
            pass
"""
# Runs on a hypervisor: what it is answered, from its own address.
FROM_THERE = """
import http.client, json, ssl, sys
host, method, path, count = sys.argv[1:]
found = []
for _ in range(int(count)):
    unverified = ssl._create_unverified_context()
    connection = http.client.HTTPSConnection(host, timeout=60, context=unverified)
    connection.request(method, path, "{}" if method == "POST" else None, {"Content-Type": "application/json"})
    found.append(connection.getresponse().status)
print(json.dumps(found))
"""


# Stands in for a page that was built, beside a real one where there is one.
PAGE = """
cd "$1"
mkdir -p assets
[ -e index.html ] || echo '<!doctype html>' >index.html
echo 'window.test = 1;' >assets/test-ABCDEFGH.js
gzip -nk assets/test-ABCDEFGH.js
echo hidden >.hidden
"""
NO_PAGE = """
cd "$1"
rm -f assets/test-ABCDEFGH.js assets/test-ABCDEFGH.js.gz .hidden
[ "$(cat index.html)" != '<!doctype html>' ] || rm index.html
"""


@pytest.fixture(scope="module")
def changed(front):
    """The way in with a page, other upstreams, limits and networks: what that run did; nginx's process before."""
    hosts = front.lab.hosts
    built = f"{salt.FORMULA}/nginx/files/usr/share/hypervisor-formula/web"
    front.lab.run(hosts.controller, ["mkdir", "-p", built])
    front.lab.run(hosts.controller, ["sh", "-ec", PAGE, "sh", built])
    # The master lists its files anew only now and then.
    front.lab.run(hosts.controller, ["salt-run", "fileserver.clear_file_list_cache"])
    before = main_process(front)
    front.pillar(
        inventory={"port": PORTS["inventory"], "streams": 2},
        console={"port": PORTS["console"]},
        consoles={"hv1": hosts.addresses["hv1"], "hv2": hosts.addresses["hv1"]},
        networks={"deny": [hosts.addresses["hv1"]]},
        api={"logins_per_minute": 1, "login_burst": 6},
    )
    yield front.highstate()["changed"], before
    front.lab.run(hosts.controller, ["sh", "-ec", NO_PAGE, "sh", built])


@pytest.fixture(scope="module")
def upstreams(front, changed):
    """Something that answers behind nginx."""
    places = ((front.lab.hosts.controller, INVENTORY, "inventory"), ("hv1", CONSOLE, "console"))
    for host, code, name in places:
        argv = ["systemd-run", "--quiet", "--collect", f"--unit=lab-{name}", "python3", "-c", code]
        front.lab.run(host, argv)
        deadline = time.monotonic() + 60
        while not front.lab.run(host, ["ss", "-Hltn", "sport", "=", f":{PORTS[name]}"]).stdout:
            assert time.monotonic() < deadline, f"{name} does not listen"
            time.sleep(0.2)
    yield
    for host, _, name in places:
        front.lab.run(host, ["systemctl", "stop", f"lab-{name}"], check=False)


def main_process(front):
    """The process of nginx that a reload keeps and a restart does not."""
    return front.lab.run(front.lab.hosts.controller, ["systemctl", "show", "nginx", "-p", "MainPID"]).stdout


def raw(front, text, until=b"\r\n\r\n", wait=60.0):
    """Send what no library would, and return what comes until a mark or the end."""
    with (
        socket.create_connection((front.host, 443), timeout=wait) as plain,
        front.believed.wrap_socket(plain, server_hostname=front.host) as secure,
    ):
        secure.sendall(text.encode())
        got = b""
        while until not in got and (more := secure.recv(65536)):
            got += more
        return got.decode(errors="replace")


def upgrade(front, path, origin="", until=b"\r\n\r\n", **headers):
    """Ask for a WebSocket as a browser does."""
    sent = {
        "Host": front.host, "Connection": "Upgrade", "Upgrade": "websocket", "Origin": origin or front.origin,
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13", "Cookie": "a=b",
        "Sec-WebSocket-Protocol": f"binary, ticket.{MARKER}", **headers,
    }  # fmt: skip
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items() if value)
    return raw(front, f"GET {path} HTTP/1.1\r\n{lines}\r\n", until)


def logs_with(front, words):
    """Look for words in all logs of nginx; the return code is grep's: 0 found, 1 not found, 2 it could not look."""
    argv = ["grep", "--recursive", "--text", "--fixed-strings", "-e", words, "/var/log/nginx"]
    return front.lab.run(front.lab.hosts.controller, argv, check=False)


def errors(front):
    """Return the lines of the page's error log."""
    argv = ["cat", "/var/log/nginx/hypervisor-error.log"]
    return front.lab.run(front.lab.hosts.controller, argv).stdout.splitlines()


def test_a_highstate_does_what_it_predicts_and_the_second_nothing(front):
    own = [[name for name in run["changed"] if name.startswith("nginx_")] for run in (front.predicted, front.first)]
    assert own[0] == own[1]
    assert {"nginx_packages", "nginx_sandbox", "nginx_certificate_web", "nginx_certificate_console", "nginx_site"} <= {
        *own[1]
    }
    assert front.highstate()["changed"] == []


def test_an_operator_logs_in_calls_and_logs_out(front):
    token = front.token("viewer")
    body = {"client": "local", "tgt": "hv1", "fun": "hypervisor.guests"}
    status, headers, text = front.ask("POST", "/api/run", body, token)
    assert status == 200, text
    assert "hv1" in json.loads(text)["return"][0]
    assert headers["cache-control"] == "no-store"
    assert not {"set-cookie", "access-control-allow-origin", "access-control-allow-credentials"} & set(headers)
    # What a foreign page could send: the cookie of salt-api, its own origin, a form.
    assert front.ask("POST", "/api/run", body, Cookie=f"session_id={token}", Origin="https://x.example")[0] == 401
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    assert front.ask("POST", "/api/run", "client=local", token, **form)[0] == 415
    assert front.ask("POST", "/api/run", body | {"fun": "cmd.run"}, token)[0] == 400
    assert front.ask("POST", "/api/logout", {}, token)[0] == 200
    assert front.ask("POST", "/api/run", body, token)[0] == 401


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/login", 405), ("PUT", "/api/run", 405), ("DELETE", "/api/logout", 405), ("POST", "/api", 404),
        ("POST", "/api/", 404), ("POST", "/api/events", 404), ("POST", "/api/run/", 404), ("POST", "/API/run", 404),
        ("GET", "/api/events", 404), ("GET", "/api/keys", 404), ("POST", "/login", 404), ("GET", "/run", 404),
        ("POST", "/inventory/snapshot", 405), ("GET", "/inventory", 404), ("GET", "/inventory/other", 404),
        ("GET", "/inventory/events/", 404), ("GET", "/inventory/events/x", 404), ("GET", "/inventory/events/a/b", 404),
        ("POST", "/inventory/events/0", 405),
        ("GET", "/websockify/hv1", 404), ("GET", "/websockify/hv9", 404), ("GET", "/websockify/", 404),
        ("GET", "/websockify/127.0.0.1", 404), ("GET", "/.git/config", 404), ("GET", "/etc/passwd", 404),
        ("OPTIONS", "/api/run", 405), ("TRACE", "/", 405), ("GET", "/assets/", 404),
        ("GET", "/assets/gone-ABCDEFGH.js", 404),
    ],
)  # fmt: skip
def test_all_else_is_refused(front, method, path, status):
    found, headers, _ = front.ask(method, path)
    assert found == status
    assert headers.get("cache-control", "no-store") == "no-store"


def test_http_leads_to_https_and_another_name_nowhere(front):
    with socket.create_connection((front.host, 80), timeout=60) as plain:
        plain.sendall(f"GET /x HTTP/1.1\r\nHost: {front.host}\r\nConnection: close\r\n\r\n".encode())
        got = plain.makefile().read()
    assert got.startswith("HTTP/1.1 308 ")
    assert f"Location: {front.origin}/x\n" in got
    assert raw(front, "GET / HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n").startswith("HTTP/1.1 404 ")


def test_nobody_is_believed_but_the_authority_for_the_web(front):
    with (
        socket.create_connection((front.host, 443), timeout=60) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname=front.host)
    printed = front.lab.run(front.lab.hosts.controller, ["cat", "/etc/pki/web/console-ca-cert.pem"]).stdout
    with (
        socket.create_connection((front.host, 443), timeout=60) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context(cadata=printed).wrap_socket(plain, server_hostname=front.host)


@pytest.mark.parametrize("path", ["/", "/api/run", "/no-such"])
def test_every_answer_has_the_headers(front, path):
    _, headers, _ = front.ask("GET", path)
    assert set(headers["content-security-policy"].split("; ")) >= POLICY
    assert "'unsafe" not in headers["content-security-policy"]
    assert headers["strict-transport-security"] == "max-age=31536000"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
    assert "camera=()" in headers["permissions-policy"]
    assert headers["server"] == "nginx"


def test_a_body_that_is_too_large_is_refused(front):
    assert front.ask("POST", "/api/run", "x" * 65537)[0] == 413


@pytest.mark.parametrize(
    "path",
    ["/../../../etc/passwd", "/..%2f..%2f..%2fetc/passwd", "/assets/../../../../etc/passwd",
     "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/assets/..%5c..%5cetc/passwd", "/websockify/..%2fhv1",
     "/websockify/hv1%00", "/api/run%0d%0aX: y", "/api/./login/../events", "http://127.0.0.1:8000/run"],
)  # fmt: skip
def test_nothing_is_reached_by_a_path_that_leads_elsewhere(front, path):
    got = raw(front, f"GET {path} HTTP/1.1\r\nHost: {front.host}\r\nConnection: close\r\n\r\n", until=b"nothing")
    assert got.split(" ", 2)[1] in {"400", "404", "405"}, got
    assert "root:" not in got


def test_a_query_is_refused_and_no_log_knows_it_nor_a_token(front):
    for path in ("/", "/api/run", "/inventory/stream", "/websockify/hv1", "/no-such"):
        assert front.ask("GET", f"{path}?token={MARKER}", token=MARKER)[0] == 404
    upgrade(front, "/websockify/hv1")
    front.ask("POST", f"/api/run?token={MARKER}", "x" * 70000, MARKER)
    with contextlib.suppress(OSError):
        raw(front, f"GET /x?{MARKER} HTTP/1.1\r\nHost: {front.host}\r\nX: {'y' * 40000}\r\n\r\n")
    # Servers beside the page's own: the one that leads from HTTP to it, and the one for other names.
    with socket.create_connection((front.host, 80), timeout=60) as plain:
        asked = f"GET /by-http?token={MARKER} HTTP/1.1\r\nHost: {front.host}\r\nConnection: close\r\n\r\n"
        plain.sendall(asked.encode())
        assert plain.makefile().read().startswith("HTTP/1.1 308 ")
    other = f"GET /by-name?token={MARKER} HTTP/1.1\r\nHost: elsewhere.example\r\nConnection: close\r\n\r\n"
    assert raw(front, other, until=b"nothing").startswith("HTTP/1.1 404 ")
    # Each server's requests are in a log, so a log that is elsewhere or empty hides nothing.
    deadline = time.monotonic() + 30
    for known in (" /websockify/hv1 ", " /by-http ", " /by-name "):
        # nginx may write the line after the client has its answer.
        while logs_with(front, known).returncode != 0:
            assert time.monotonic() < deadline, f"no log has {known}"
            time.sleep(0.2)
    found = logs_with(front, MARKER)
    assert (found.returncode, found.stdout) == (1, "")


def test_a_change_is_reloaded_and_keeps_the_process(front, changed):
    names, before = changed
    assert names == ["nginx_site", "nginx_web"]
    assert main_process(front) == before


def test_the_page_is_served_and_kept_as_long_as_its_names_last(front, changed):
    status, headers, text = front.ask("GET", "/assets/test-ABCDEFGH.js", Accept_Encoding="gzip")
    assert (status, gzip.decompress(text)) == (200, b"window.test = 1;\n")
    assert "javascript" in headers["content-type"]
    assert headers["cache-control"] == "public, max-age=31536000, immutable"
    assert headers["vary"] == "Accept-Encoding"
    assert front.ask("GET", "/assets/test-ABCDEFGH.js")[2] == b"window.test = 1;\n"
    status, headers, text = front.ask("GET", "/")
    assert (status, headers["content-type"], headers["cache-control"]) == (200, "text/html; charset=utf-8", "no-cache")
    assert text.lower().startswith(b"<!doctype html>")
    others = (("POST", "/"), ("GET", "/.hidden"), ("GET", "/index.html"))
    assert [front.ask(*one)[0] for one in others] == [405, 404, 200]


def test_what_does_not_listen_is_a_bad_gateway(front, changed):
    assert front.ask("GET", "/inventory/snapshot")[0] == 502
    assert upgrade(front, "/websockify/hv1").startswith("HTTP/1.1 502 ")


@pytest.mark.parametrize("asked", ["/inventory/snapshot", "/inventory/events/0f1e-2d"])
def test_the_inventory_hears_what_it_needs_and_says_no_more_than_it_should(front, upstreams, asked):
    status, headers, text = front.ask(
        "GET", asked, token="t1", Cookie="a=b", Origin="https://x.example", If_None_Match='"6"',
        X_Forwarded_For="192.0.2.1", Authorization="Basic eDp5",
    )  # fmt: skip
    path, heard = json.loads(text)
    assert (status, path) == (200, asked)
    told = {name.lower(): value for name, value in heard}
    assert told.items() >= {"x-auth-token": "t1", "if-none-match": '"6"', "host": "127.0.0.1"}.items()
    assert not set(told) & {"cookie", "origin", "x-forwarded-for", "authorization", "referer", "user-agent"}
    assert headers["etag"] == '"7"'
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert not {"set-cookie", "access-control-allow-origin", "x-accel-redirect"} & set(headers)


def test_a_stream_arrives_while_it_goes_on_and_only_so_many_are_open(front, upstreams):
    asked = f"GET /inventory/stream HTTP/1.1\r\nHost: {front.host}\r\nLast-Event-ID: 17\r\n\r\n"
    with contextlib.ExitStack() as open_ones:
        for _ in range(2):
            plain = open_ones.enter_context(socket.create_connection((front.host, 443), timeout=60))
            secure = open_ones.enter_context(front.believed.wrap_socket(plain, server_hostname=front.host))
            secure.sendall(asked.encode())
            got = b""
            # The end of this answer is ten minutes away.
            while b'"/inventory/stream"' not in got:
                chunk = secure.recv(65536)
                assert chunk, got
                got += chunk
            assert got.startswith(b"HTTP/1.1 200 ")
        assert raw(front, asked).startswith("HTTP/1.1 429 ")


def test_a_console_is_opened_with_the_certificate_of_the_way_in(front, upstreams):
    got = upgrade(front, "/websockify/hv1", until=b'"]')
    assert got.startswith("HTTP/1.1 101 ")
    assert "Sec-WebSocket-Protocol: binary" in got
    who, asked = json.loads(got[got.index('[["'):])
    assert who == ["controller"]
    told = {line.split(":")[0].lower() for line in asked.splitlines()[1:] if ":" in line}
    assert "sec-websocket-protocol" in told
    assert f"ticket.{MARKER}" in asked
    assert not told & {"cookie", "origin", "x-auth-token", "x-forwarded-for"}


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/websockify/hv1", {"Origin": "https://elsewhere.example"}, 403),
        ("/websockify/hv1", {"Origin": "null"}, 403),
        ("/websockify/hv1", {"Upgrade": "h2c"}, 404),
        ("/websockify/hv9", {}, 404),
    ],
)
def test_no_other_console_is_opened(front, upstreams, path, headers, status):
    assert upgrade(front, path, **headers).startswith(f"HTTP/1.1 {status} ")


def test_a_host_that_shows_another_hosts_certificate_is_refused_for_that(front, upstreams):
    before = len(errors(front))
    assert upgrade(front, "/websockify/hv2").startswith("HTTP/1.1 502 ")
    said = errors(front)[before:]
    assert [line for line in said if 'upstream SSL certificate does not match "hv2"' in line], said
    # The same door under the name in its certificate: nothing else stood in the way.
    assert upgrade(front, "/websockify/hv1").startswith("HTTP/1.1 101 ")


def test_too_many_logins_of_one_address_are_refused_and_only_those(front, changed):
    argv = ["python3", "-c", FROM_THERE, front.host, "POST", "/api/login", "10"]
    found = json.loads(front.lab.run("hv2", argv).stdout)
    assert found == [400] * 7 + [429] * 3
    assert front.ask("POST", "/api/login", {})[0] == 400
    again = json.loads(front.lab.run("hv2", [*argv[:4], "POST", "/api/run", "1"]).stdout)
    assert again == [401]


def test_a_denied_address_reaches_nothing(front, changed):
    for method, path in (("GET", "/"), ("POST", "/api/login"), ("GET", "/inventory/snapshot")):
        argv = ["python3", "-c", FROM_THERE, front.host, method, path, "1"]
        assert json.loads(front.lab.run("hv1", argv).stdout) == [403]


def test_what_nginx_refuses_changes_nothing(front, changed):
    """Its own words say why; connections and process stay."""
    controller, before = front.lab.hosts.controller, main_process(front)
    text = front.lab.run(controller, ["sha256sum", "/etc/nginx/conf.d/hypervisor.conf"]).stdout
    broken = "/etc/nginx/conf.d/other.conf"
    front.lab.run(controller, ["sh", "-c", f"echo 'no_such_thing on;' >{broken}"])
    try:
        front.pillar(hsts_seconds=60)
        for test in (True, False):
            rows = salt.highstate(front.lab.hosts, [controller], test=test)[controller].values()
            (site,) = [row for row in rows if row["__id__"] == "nginx_site"]
            assert (site["result"], site["changes"]) == (False, {})
            assert 'unknown directive "no_such_thing"' in site["comment"]
            assert broken in site["comment"]
    finally:
        front.lab.run(controller, ["rm", broken])
    assert front.lab.run(controller, ["sha256sum", "/etc/nginx/conf.d/hypervisor.conf"]).stdout == text
    assert main_process(front) == before
    answering(front)
    assert front.ask("GET", "/")[1]["strict-transport-security"] == "max-age=31536000"
