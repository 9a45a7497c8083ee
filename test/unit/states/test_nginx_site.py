"""The page's site: tested before it counts, read again or restarted only as needed, and nothing beside it touched."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from _states import nginx_site
from _utils import nginx_config, own_files

SETTINGS: dict[str, Any] = {
    "server_names": ["page.example"], "ports": {"http": 80, "https": 443}, "ipv6": True,
    "networks": {"allow": [], "deny": []}, "hsts_seconds": 60, "hash": {},
    "api": {"port": 8000, "max_body": 1024, "logins_per_minute": 6, "login_burst": 5, "requests_per_second": 9,
            "burst": 9},
    "inventory": {"port": 8010, "streams": 5}, "consoles": {"hv1": "192.0.2.11"},
    "console": {"port": 16515, "open": 5},
}  # fmt: skip


class Host:
    """A host with nginx and systemd; it records what systemd is told, and what nginx was shown."""

    def __init__(self, monkeypatch, folder: Path, *, test: bool = False) -> None:
        self.told: list[str] = []
        self.shown: dict[str, str] = {}
        self.active, self.enabled, self.since, self.refuses, self.fails = True, True, 0.0, "", ""
        self.started = 0.0
        self.folder, self.work = folder / "nginx", folder / "work"
        (self.folder / "conf.d").mkdir(parents=True)
        (self.folder / "nginx.conf").write_text("include conf.d/*.conf;\n")
        (self.folder / "enabled").symlink_to("/etc/nginx/elsewhere")
        self.pki = folder / "pki"
        self.pki.mkdir()
        for name in ("cert", "key", "console-cert.pem", "console-key.pem", "console-ca-cert.pem"):
            (self.pki / name).write_text("x")
        self.work.mkdir()
        self.sandbox = folder / "sandbox.conf"
        self.sandbox.write_text("[Service]\n")
        self.web = folder / "web"
        self.now()
        monkeypatch.setattr(nginx_site, "_FOLDER", self.folder)
        monkeypatch.setattr(nginx_site, "_WORK", self.work)
        monkeypatch.setattr(nginx_site, "_PID", folder / "pid")
        monkeypatch.setattr("shutil.which", lambda _: "/usr/sbin/nginx")
        self.test(monkeypatch, test)
        monkeypatch.setattr(nginx_site, "__salt__", {"cmd.run_all": self.run}, raising=False)
        utils: dict[str, Any] = {"nginx_config.site": nginx_config.site}
        utils |= {f"own_files.{name}": getattr(own_files, name) for name in ("read", "write", "access")}
        monkeypatch.setattr(nginx_site, "__utils__", utils, raising=False)

    @staticmethod
    def test(monkeypatch, value: bool = True) -> None:
        monkeypatch.setattr(nginx_site, "__opts__", {"test": value}, raising=False)

    def now(self) -> None:
        """Let nginx have read everything a moment after it was written."""
        self.since = self.started = time.clock_gettime(time.CLOCK_MONOTONIC) + 60

    def long_ago(self) -> None:
        """Let nginx have read everything before it was written."""
        self.since = time.clock_gettime(time.CLOCK_MONOTONIC) - 3600

    @property
    def file(self) -> Path:
        return self.folder / "conf.d" / "hypervisor.conf"

    def run(self, argv: list[str], **_: Any) -> dict[str, Any]:
        code, out, err = 0, "", ""
        if argv[0] == "systemd-run":
            (bound,) = [word for word in argv if word.startswith("--property=BindReadOnlyPaths=")]
            tree, mark, place = bound.removeprefix("--property=BindReadOnlyPaths=").partition(":")
            assert (mark, place) == (":", str(self.folder))
            self.shown = {
                str(path.relative_to(tree)): str(path.readlink()) if path.is_symlink() else path.read_text()
                for path in Path(tree).rglob("*") if path.is_symlink() or path.is_file()
            }  # fmt: skip
            nginx_site._PID.touch()
            code, err = (1, self.refuses) if self.refuses else (0, "")
        elif argv[1] == "show":
            state = "active" if self.active else "inactive"
            out = (
                f"ActiveState={state}\nActiveEnterTimestampMonotonic={int(self.started * 1e6)}\n"
                f"StateChangeTimestampMonotonic={int(self.since * 1e6)}\n"
            )
        elif argv[1] == "is-enabled":
            out = "enabled\n" if self.enabled else "disabled\n"
        else:
            self.told.append(" ".join(argv[1:]))
            if self.fails and argv[1] == self.fails:
                code, err = 1, "it broke"
            self.active = True
            self.enabled = True
            self.now()
        return {"retcode": code, "stdout": out, "stderr": err}

    def served(self, function: Any = None, **more: Any) -> dict[str, Any]:
        given: dict[str, Any] = {
            "settings": SETTINGS | more, "certificate": str(self.pki / "cert"), "key": str(self.pki / "key"),
            "pki": str(self.pki), "web": str(self.web), "sandbox": str(self.sandbox),
        }  # fmt: skip
        # As Salt does it, with words of its own where a function takes any.
        own: dict[str, Any] = {"__id__": "nginx_site", "sfun": "served"} if function else {}
        return dict((function or nginx_site.served)(str(self.file), **given, **own))


@pytest.fixture(name="host")
def running_host(monkeypatch, tmp_path):
    return Host(monkeypatch, tmp_path)


def test_a_new_site_is_tested_with_all_else_written_and_read(host):
    ret = host.served()
    assert (ret["result"], ret["changes"]) == (True, {"file": "new", "reload": "nginx"})
    assert host.told == ["reload nginx"]
    assert set(host.shown) == {"nginx.conf", "enabled", "conf.d/hypervisor.conf"}
    assert host.shown["conf.d/hypervisor.conf"] == host.file.read_text()
    assert host.shown["enabled"] == "/etc/nginx/elsewhere"
    assert host.file.stat().st_mode & 0o777 == 0o644
    assert list(host.work.iterdir()) == []
    assert not nginx_site._PID.exists(), "a test leaves no file of a process that does not run"
    host.told.clear()
    assert (host.served()["changes"], host.told) == ({}, [])


def test_what_nginx_refuses_changes_nothing_and_its_words_are_told(host):
    host.served()
    before, host.refuses = host.file.read_text(), 'nginx: [emerg] unknown directive "x" in /etc/nginx/conf.d/a.conf:1'
    host.told.clear()
    ret = host.served(hsts_seconds=61)
    assert (ret["result"], ret["changes"], host.told) == (False, {}, [])
    assert 'unknown directive "x" in /etc/nginx/conf.d/a.conf:1' in ret["comment"]
    assert host.file.read_text() == before
    assert list(host.work.iterdir()) == []


def test_a_prediction_tests_and_touches_nothing(host, monkeypatch):
    host.test(monkeypatch)
    ret = host.served()
    assert (ret["result"], ret["changes"]) == (None, {"file": "new", "reload": "nginx"})
    assert host.shown
    assert (host.told, host.file.exists()) == ([], False)
    host.refuses = "nginx: [emerg] no"
    assert host.served()["result"] is False


def test_a_prediction_before_certificates_are_there_promises_no_more_than_a_test(host, monkeypatch):
    host.test(monkeypatch)
    (host.pki / "console-key.pem").unlink()
    ret = host.served()
    assert ret["result"] is None
    assert f"once {host.pki / 'console-key.pem'} is there" in ret["comment"]
    assert not host.shown


@pytest.mark.parametrize("name", ["cert", "key", "console-cert.pem", "console-key.pem", "console-ca-cert.pem"])
def test_a_renewed_certificate_is_read(host, name):
    host.served()
    host.told.clear()
    host.long_ago()
    ret = host.served()
    assert (ret["changes"], host.told) == ({"reload": "nginx"}, ["reload nginx"])
    assert host.served()["changes"] == {}
    (host.pki / name).unlink()
    assert host.served()["changes"] == {}


def test_only_a_newer_sandbox_restarts(host):
    host.served()
    host.told.clear()
    host.started = time.clock_gettime(time.CLOCK_MONOTONIC) - 3600
    ret = host.served()
    assert (ret["changes"], host.told) == ({"restart": "nginx"}, ["daemon-reload", "restart nginx"])
    assert host.served()["changes"] == {}


def test_one_that_does_not_run_is_enabled_and_started(host):
    host.active = host.enabled = False
    ret = host.served()
    assert ret["changes"] == {"file": "new", "enabled": "nginx", "start": "nginx"}
    assert host.told == ["enable --quiet nginx", "daemon-reload", "start nginx"]


def test_a_reload_that_fails_is_told(host):
    host.fails = "reload"
    ret = host.served()
    assert ret["result"] is False
    assert "systemctl reload nginx failed: it broke" in ret["comment"]


def test_a_watched_change_is_predicted(host, monkeypatch):
    host.served()
    assert host.served(nginx_site.mod_watch)["changes"] == {}, "the state itself has read it by then"
    host.test(monkeypatch)
    ret = host.served(nginx_site.mod_watch)
    assert (ret["result"], ret["changes"]) == (None, {"reload": "nginx"})


def test_permissions_are_repaired(host):
    host.served()
    host.file.chmod(0o666)
    assert host.served()["changes"]["access"] == "mode 0666 instead of 0644"
    assert host.file.stat().st_mode & 0o777 == 0o644


def test_absent_takes_away_its_own_and_nginx_goes_on(host, monkeypatch):
    host.served()
    host.web.mkdir()
    host.told.clear()
    given = (str(host.file), str(host.web))
    host.test(monkeypatch)
    assert nginx_site.absent(*given, sandbox=str(host.sandbox))["result"] is None
    assert host.file.exists()
    host.test(monkeypatch, False)
    ret = nginx_site.absent(*given, sandbox=str(host.sandbox))
    assert ret["changes"] == {"removed": [str(host.file), str(host.sandbox), str(host.web)]}
    assert host.told == ["daemon-reload", "reload nginx"]
    assert (host.folder / "nginx.conf").exists()
    assert nginx_site.absent(*given, sandbox=str(host.sandbox))["changes"] == {}


# ---- the page's files ----


class Server:
    """A file server with what was built, by path below the source."""

    def __init__(self, monkeypatch, folder: Path, files: dict[str, str]) -> None:
        self.files, self.folder = files, folder
        self.prefix = "nginx/files/web/"
        salt = {"cp.list_master": self.listed, "cp.cache_file": self.cached}
        monkeypatch.setattr(nginx_site, "__salt__", salt, raising=False)

    def listed(self, prefix: str) -> list[str]:
        return [path for path in (*(self.prefix + file for file in self.files), "nginx/files/web2/x")
                if path.startswith(prefix)]  # fmt: skip

    def cached(self, url: str) -> str:
        path = self.folder / "cached"
        path.write_text(self.files[url.removeprefix(f"salt://{self.prefix}")])
        return str(path)


def page(host: Host) -> dict[str, Any]:
    return nginx_site.page(str(host.web), "salt://nginx/files/web")


def test_a_page_that_was_not_built_fails_nothing_and_says_what_to_do(host, monkeypatch, tmp_path):
    Server(monkeypatch, tmp_path, {})
    ret = page(host)
    assert (ret["result"], ret["changes"]) == (True, {})
    assert "run `make web`" in ret["comment"]
    host.web.mkdir()
    (host.web / "index.html").write_text("old")
    assert "already stays" in page(host)["comment"]
    assert (host.web / "index.html").read_text() == "old"


def test_the_folder_becomes_what_was_built(host, monkeypatch, tmp_path):
    server = Server(monkeypatch, tmp_path, {"index.html": "1", "assets/a-ABCDEFGH.js": "a", "assets/sub/b.css": "b"})
    host.test(monkeypatch)
    predicted = page(host)
    assert (predicted["result"], host.web.exists()) == (None, False)
    host.test(monkeypatch, False)
    assert page(host)["changes"] == predicted["changes"]
    assert (host.web / "assets/sub/b.css").read_text() == "b"
    assert (host.web / "assets/sub/b.css").stat().st_mode & 0o777 == 0o644
    assert page(host)["changes"] == {}
    server.files = {"index.html": "2", "assets/a-ABCDEFGH.js": "a"}
    assert page(host)["changes"] == {"written": ["index.html"], "removed": ["assets/sub/b.css"]}
    assert not (host.web / "assets/sub").exists()
    assert (host.web / "index.html").read_text() == "2"


def test_half_a_page_is_no_page(host, monkeypatch, tmp_path):
    Server(monkeypatch, tmp_path, {"assets/a.js": "a"})
    assert page(host)["changes"] == {}
    assert not host.web.exists()
