"""The emitter of libvirt's configuration files, and what its state shows of a change."""

from __future__ import annotations

from typing import Any

import pytest

from _states import libvirt_conf


@pytest.fixture(name="calls")
def recorded_calls(monkeypatch) -> list[dict[str, Any]]:
    """Replace file.managed by one that reports a diff and records how it was called."""
    calls: list[dict[str, Any]] = []

    def managed(name: str, **kwargs: Any) -> dict[str, Any]:
        calls.append({"name": name, **kwargs})
        return {"name": name, "result": True, "changes": {"diff": "…"}, "comment": "File updated"}

    monkeypatch.setattr(libvirt_conf, "__states__", {"file.managed": managed}, raising=False)
    monkeypatch.setattr(libvirt_conf, "__opts__", {"test": False}, raising=False)
    monkeypatch.setattr(libvirt_conf, "__context__", {}, raising=False)
    return calls


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "1"),
        (False, "0"),
        (0, "0"),
        (-7, "-7"),
        ("root", '"root"'),
        ("", '""'),
        ("a\\b", '"a\\b"'),
        ('say "hi"', "'say \"hi\"'"),
        ("""both ' and " here""", '"""both \' and " here"""'),
        ([], "[]"),
        (["/dev/null"], '[ "/dev/null" ]'),
        (["a", "b"], '[ "a", "b" ]'),
    ],
)
def test_emitted(value, text):
    assert libvirt_conf.emitted(value) == text


@pytest.mark.parametrize(
    "value", ["two\nlines", "tab\t", "\x7f", """all ' " and \"\"\" kinds""", """ends ' in \""""]
)
def test_what_libvirt_cannot_read_back_is_refused(value):
    with pytest.raises(ValueError, match="libvirt file"):
        libvirt_conf.quoted(value)


@pytest.mark.parametrize("value", [1.5, None, {"a": 1}, [1], ["a", True], [["a"]]])
def test_other_types_are_refused(value):
    with pytest.raises(TypeError):
        libvirt_conf.emitted(value)


def test_render_sorts_keys_below_a_header():
    text = libvirt_conf.render({"user": "root", "max_files": 10, "dynamic_ownership": True})
    assert text == (
        f'{libvirt_conf.HEADER}\ndynamic_ownership = 1\nmax_files = 10\nuser = "root"\n'
    )


@pytest.mark.parametrize("key", ["", "Key", "1a", "a-b", "a b", "a\n", "a=b", "#a"])
def test_a_key_that_libvirt_would_not_read_is_refused(key):
    with pytest.raises(ValueError, match="not a key"):
        libvirt_conf.render({key: 1})


def test_invalid_settings_write_nothing(calls):
    ret = libvirt_conf.managed("/etc/libvirt/qemu.conf", {"user": "a\nb"})
    assert ret["result"] is False
    assert ret["changes"] == {}
    assert "user: a control character" in ret["comment"]
    assert calls == []


def test_changes_are_settings_and_not_lines(calls, tmp_path):
    path = tmp_path / "qemu.conf"
    path.write_text('# long explanation\n#user = "x"\nmax_core = 1\nkeep = 1\n')
    ret = libvirt_conf.managed(str(path), {"user": "root", "keep": True}, mode="0600")
    assert ret["changes"] == {
        "settings": {
            "max_core": {"old": "1", "new": None},
            "user": {"old": None, "new": '"root"'},
        }
    }
    assert calls[0]["mode"] == "0600"
    assert calls[0]["show_changes"] is False


def test_a_file_that_loses_comments_only_says_so(calls, tmp_path):
    path = tmp_path / "libvirtd.conf"
    path.write_text("# explanation\n")
    assert libvirt_conf.managed(str(path), {})["changes"] == {"settings": "comments only"}
    assert len(calls) == 1


def test_secrets_are_not_shown(calls, tmp_path):
    path = tmp_path / "qemu.conf"
    path.write_text('vnc_password = "old-one"\n')
    ret = libvirt_conf.managed(str(path), {"vnc_password": "new-one"})
    assert ret["changes"]["settings"]["vnc_password"] == {"old": "(hidden)", "new": "(hidden)"}
    assert "new-one" not in str(ret)
    assert "new-one" in calls[0]["contents"]


@pytest.mark.parametrize("test", [True, False])
def test_a_dry_run_tells_the_daemons_state_what_would_be_written(monkeypatch, calls, tmp_path, test):
    context: dict[str, Any] = {}
    monkeypatch.setattr(libvirt_conf, "__opts__", {"test": test}, raising=False)
    monkeypatch.setattr(libvirt_conf, "__context__", context, raising=False)
    libvirt_conf.managed(str(tmp_path / "x.conf"), {"a": 1})
    assert calls
    assert context == ({"libvirt_conf.pending": {str(tmp_path / "x.conf")}} if test else {})


def test_only_what_the_state_wrote_counts_as_its_own(tmp_path):
    path = tmp_path / "x.conf"
    assert not libvirt_conf.written_here(str(path))
    path.write_text("# from the package\n")
    assert not libvirt_conf.written_here(str(path))
    path.write_text(libvirt_conf.render({"a": 1}))
    assert libvirt_conf.written_here(str(path))
