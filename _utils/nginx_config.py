"""The one site of nginx on the master: pure, from pillar to the text of its file.

Four things hold for all of it. What a location passes on is named header by header, so no cookie, no Origin and no
address that a client made up goes through. Headers of answers stand at the server, since one of a location would
replace them all. A request with a query ends before anything could log it. Names of hosts are never resolved.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

Lines = list[str]

_HEAD = "# Written by Salt (nginx.site), which owns this file whole."
_LOGGED = "$remote_addr $time_iso8601 $request_method $uri $server_protocol $status $body_bytes_sent $request_time"
# What is known to be safe with TLS 1.2; of 1.3 everything is.
_CIPHERS = ":".join(
    f"ECDHE-{kind}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for kind in ("ECDSA", "RSA")
)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self' wss://$host@PORT@; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "$hypervisor_cache",
}
# What those behind may say of themselves and nobody shall hear: cookies, other origins, and what stands above.
_HIDDEN = (
    "Set-Cookie", "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Access-Control-Allow-Headers",
    "Access-Control-Allow-Methods", "Access-Control-Expose-Headers", "Access-Control-Max-Age", "Allow", "X-Powered-By",
    "Strict-Transport-Security", *_HEADERS,
)  # fmt: skip
_IGNORED = "X-Accel-Redirect X-Accel-Expires X-Accel-Limit-Rate X-Accel-Buffering X-Accel-Charset"
_MISSING = "The page has not been built: run `make web` in the formula's checkout, then a highstate on the master."


def host(name: str) -> str:
    """Returns a name or address as it stands in a URL: IPv6 in brackets, letters small."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name.lower()
    return f"[{address}]" if address.version == 6 else str(address)


def site(settings: Mapping[str, Any], certificate: str, key: str, pki: str, web: str) -> str:
    """Returns the file.

    Args:
        settings: keys of the pillar.
        certificate: of the site.
        key: of the site.
        pki: the folder of what opens consoles.
        web: the folder of the page's files.
    """
    names = " ".join(map(host, settings["server_names"]))
    tls = [f"ssl_certificate {certificate};", f"ssl_certificate_key {key};", "ssl_protocols TLSv1.2 TLSv1.3;"]
    tls += [f"ssl_ciphers {_CIPHERS};", "ssl_prefer_server_ciphers off;"]
    tls += ["ssl_session_cache shared:hypervisor:2m;", "ssl_session_tickets off;"]
    https, http = settings["ports"]["https"], settings["ports"]["http"]
    port, ipv6 = "" if https == 443 else f":{https}", settings["ipv6"]
    blocks = [
        [_HEAD, *_common(settings)],
        # The first one that listens: whoever asks for another name gets nothing, unless another site is the default.
        _block("server", [
            *_listen(https, ipv6, " ssl"), "server_name hypervisor.invalid;", *_quiet(), *tls, "return 404;",
        ]),
        _block("server", [
            *_listen(http, ipv6), f"server_name {names};", *_quiet(), f"return 308 https://$host{port}$request_uri;",
        ]),
        _block("server", [
            *_listen(https, ipv6, " ssl"), f"server_name {names};", *_quiet(), *tls, "",
            *_access(settings["networks"]), "", *_limits(settings), "", *_answers(settings["hsts_seconds"], port), "",
            *_passed_on(), "", *_api(settings["api"]), "", *_inventory(settings["inventory"], settings["api"]["burst"]),
            *_consoles(settings, pki, port), "", *_page(web),
        ]),
    ]  # fmt: skip
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"


def _block(head: str, lines: Iterable[str]) -> Lines:
    """Returns lines in braces."""
    return [f"{head} {{", *(f"    {line}" if line else "" for line in lines), "}"]


def _listen(port: int, ipv6: bool, options: str = "") -> Lines:
    """Returns where a server listens: every address."""
    return [f"listen {port}{options};", *([f"listen [::]:{port}{options};"] if ipv6 else [])]


def _quiet() -> Lines:
    """Returns what keeps versions out of answers, and queries, agents and referrers out of logs."""
    return [
        "server_tokens off;",
        "access_log /var/log/nginx/hypervisor-access.log hypervisor;",
        "error_log /var/log/nginx/hypervisor-error.log;",
    ]


def _common(settings: Mapping[str, Any]) -> Lines:
    """Returns what stands outside of servers."""
    api = settings["api"]
    return [
        *(f"{key} {value};" for key, value in settings["hash"].items() if key.startswith("server_names_")),
        f"log_format hypervisor '{_LOGGED}';",
        f"limit_req_zone $binary_remote_addr zone=hypervisor_login:2m rate={api['logins_per_minute']}r/m;",
        f"limit_req_zone $binary_remote_addr zone=hypervisor_run:2m rate={api['requests_per_second']}r/s;",
        "limit_conn_zone $binary_remote_addr zone=hypervisor_stream:2m;",
        "limit_conn_zone $binary_remote_addr zone=hypervisor_console:2m;",
        "# What has a hash in its name never changes. Only an answer that holds it is kept.",
        *_block('map "$status $uri" $hypervisor_cache', [
            "default no-store;",
            r'"~^(200|206|304) /assets/.*[.-][0-9A-Za-z_]{8,}\.[0-9a-z.]+$" "public, max-age=31536000, immutable";',
            r'"~^(200|206|304) /(index\.html)?$" no-cache;',
        ]),
    ]  # fmt: skip


def _access(networks: Mapping[str, Any]) -> Lines:
    """Returns who is let in; the first that fits decides."""
    lines = [f"deny {one};" for one in networks["deny"]] + [f"allow {one};" for one in networks["allow"]]
    return [*lines, "deny all;"] if networks["allow"] else lines


def _limits(settings: Mapping[str, Any]) -> Lines:
    """Returns how much a request may be, and what ends it at once."""
    return [
        *(f"{key} {value};" for key, value in settings["hash"].items() if key.startswith("types_")),
        f"client_max_body_size {settings['api']['max_body']};",
        "client_body_timeout 10s;",
        "client_header_timeout 10s;",
        "send_timeout 30s;",
        "limit_req_status 429;",
        "limit_conn_status 429;",
        "# No part of this site has a query, and a line of the error log would show one.",
        *_block('if ($args != "")', ["return 404;"]),
    ]


def _answers(hsts_seconds: int, port: str) -> Lines:
    """Returns the headers of every answer."""
    headers = {"Strict-Transport-Security": f"max-age={hsts_seconds}", **_HEADERS}
    return [f'add_header {name} "{value.replace("@PORT@", port)}" always;' for name, value in headers.items()]


def _passed_on() -> Lines:
    """Returns what those behind are told, and what of their answers nobody hears."""
    return [
        "proxy_pass_request_headers off;",
        "proxy_http_version 1.1;",
        "proxy_redirect off;",
        "proxy_connect_timeout 5s;",
        "proxy_read_timeout 120s;",
        f"proxy_ignore_headers {_IGNORED};",
        *(f"proxy_hide_header {name};" for name in _HIDDEN),
    ]


def _headers(headers: Mapping[str, str]) -> Lines:
    """Returns the headers of a request that is passed on."""
    return [f"proxy_set_header {name} {value};" for name, value in headers.items()]


def _only(method: str) -> Lines:
    """Returns what refuses another method."""
    return _block(f"if ($request_method != {method})", ["return 405;"])


def _api(api: Mapping[str, Any]) -> Lines:
    """Returns the three paths of salt-api that there are."""
    lines: Lines = []
    told = {
        "Host": "127.0.0.1", "Connection": '""', "Accept": "application/json", "Content-Type": "$content_type",
        "X-Auth-Token": "$http_x_auth_token",
    }  # fmt: skip
    for path, zone, burst in (
        ("login", "login", api["login_burst"]), ("logout", "run", api["burst"]), ("run", "run", api["burst"]),
    ):  # fmt: skip
        lines += _block(f"location = /api/{path}", [
            *_only("POST"), f"limit_req zone=hypervisor_{zone} burst={burst} nodelay;", *_headers(told),
            f"proxy_pass http://127.0.0.1:{api['port']}/{path};",
        ])  # fmt: skip
    return lines


def _inventory(inventory: Mapping[str, Any], burst: int) -> Lines:
    """Returns what tells of hosts and guests: at once, and as it happens."""
    told = {
        "Host": "127.0.0.1", "Connection": '""', "Content-Length": '""', "Accept": "$http_accept",
        "Accept-Encoding": "$http_accept_encoding", "If-None-Match": "$http_if_none_match",
        "Last-Event-ID": "$http_last_event_id", "X-Auth-Token": "$http_x_auth_token",
    }  # fmt: skip
    lines: Lines = []
    for path, more in (
        ("snapshot", []),
        # A stream says something every 15 s.
        ("stream", [
            f"limit_conn hypervisor_stream {inventory['streams']};", "proxy_buffering off;", "proxy_read_timeout 60s;",
        ]),
    ):  # fmt: skip
        lines += _block(f"location = /inventory/{path}", [
            *_only("GET"), f"limit_req zone=hypervisor_run burst={burst} nodelay;", *more,
            "proxy_pass_request_body off;", *_headers(told), f"proxy_pass http://127.0.0.1:{inventory['port']}/inventory/{path};",
        ])  # fmt: skip
    # What has happened to one guest, by its UUID.
    lines += _block("location ~ ^/inventory/events/[0-9a-f-]+$", [
        *_only("GET"), f"limit_req zone=hypervisor_run burst={burst} nodelay;",
        "proxy_pass_request_body off;", *_headers(told), f"proxy_pass http://127.0.0.1:{inventory['port']};",
    ])  # fmt: skip
    return lines


def _consoles(settings: Mapping[str, Any], pki: str, port: str) -> Lines:
    """Returns the way to the consoles of each known host. A browser says which page asks: this one alone may."""
    told = {
        "Host": "$host", "Upgrade": "websocket", "Connection": "upgrade", "Content-Length": '""',
        "Sec-WebSocket-Key": "$http_sec_websocket_key", "Sec-WebSocket-Version": "$http_sec_websocket_version",
        "Sec-WebSocket-Protocol": "$http_sec_websocket_protocol",
    }  # fmt: skip
    lines: Lines = []
    console = settings["console"]
    for minion, address in sorted(settings["consoles"].items()):
        lines += ["", *_block(f"location = /websockify/{minion}", [
            *_only("GET"),
            *_block('if ($http_upgrade !~* "^websocket$")', ["return 404;"]),
            *_block(f'if ($http_origin != "https://$host{port}")', ["return 403;"]),
            f"limit_req zone=hypervisor_run burst={settings['api']['burst']} nodelay;",
            f"limit_conn hypervisor_console {console['open']};",
            "proxy_pass_request_body off;", *_headers(told), "proxy_buffering off;", "proxy_read_timeout 1h;",
            "proxy_send_timeout 1h;", "proxy_ssl_protocols TLSv1.2 TLSv1.3;", "proxy_ssl_verify on;",
            f"proxy_ssl_trusted_certificate {pki}/console-ca-cert.pem;",
            f"proxy_ssl_certificate {pki}/console-cert.pem;", f"proxy_ssl_certificate_key {pki}/console-key.pem;",
            f"proxy_ssl_name {minion};", "proxy_ssl_server_name on;", "proxy_ssl_session_reuse off;",
            f"proxy_pass https://{host(address)}:{console['port']}/websockify;",
        ])]  # fmt: skip
    return lines


def _page(web: str) -> Lines:
    """Returns the page's own files, and nothing beside them."""
    return [
        f"root {web};",
        "charset utf-8;",
        "gzip_static on;",
        "gzip_vary on;",
        "disable_symlinks on;",
        *_block("location = /", ["try_files /index.html @missing;"]),
        *_block("location @missing", ["default_type text/plain;", f'return 503 "{_MISSING}\\n";']),
        *_block(r"location ~ /\.", ["return 404;"]),
        *_block("location /", ["try_files $uri =404;"]),
    ]
