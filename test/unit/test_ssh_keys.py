"""What counts as a public key, and what ssh and sshd are told with them."""

from __future__ import annotations

import base64

import pytest

from _utils import ssh_keys


def public(kind: str = "ssh-ed25519", body: bytes = b"k" * 32) -> str:
    name = kind.encode()
    return f"{kind} {base64.b64encode(len(name).to_bytes(4, 'big') + name + body).decode()}"


ONE, TWO, THREE = (public(body=letter * 32) for letter in (b"a", b"b", b"c"))
HOSTS = {
    "hv1": {"addresses": ["192.0.2.11", "2001:DB8::11"], "names": ["HV1.example.org"]},
    "hv2": {"addresses": ["192.0.2.12"]},
}
ENTRIES = {"hv1": {"user": ONE, "host": [TWO]}, "hv2": {"user": THREE, "host": [ONE, public("ssh-rsa")]}}


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256"])
def test_public_keys(kind):
    assert ssh_keys.is_public(public(kind))


@pytest.mark.parametrize(
    "text",
    [
        "", None, 5, ONE + " x", ONE + "\n", ONE + "\n" + TWO, 'command="x" ' + ONE, " " + ONE, "ssh-ed25519 AAAA",
        "ssh-dss " + ONE.split()[1], "ssh-rsa " + ONE.split()[1], ONE.replace("A", "!", 1), "*," + ONE,
    ],
)  # fmt: skip
def test_whatever_could_carry_more_than_a_key_is_none(text):
    assert not ssh_keys.is_public(text)


def test_the_comment_of_a_file_is_left_out():
    assert ssh_keys.public_of(f"{ONE} root@hv1\n") == ONE
    assert ssh_keys.public_of("no key at all") == ""


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ({"user": ONE, "host": [TWO]}, ""),
        ({"user": ONE, "host": [TWO] * 8}, ""),
        ({"user": ONE, "host": [TWO] * 9}, "host is no list"),
        ({"user": ONE, "host": []}, "host is no list"),
        ({"user": ONE, "host": TWO}, "host is no list"),
        ({"user": "x", "host": [TWO]}, "user is no public key"),
        ({"user": ONE, "host": [TWO, "x"]}, "an entry that is no public key"),
        ({"user": ONE}, "no mapping"),
        ({"user": ONE, "host": [TWO], "id": "hv2"}, "no mapping"),
        ([], "no mapping"),
    ],
)
def test_what_a_host_hands_in_is_checked(entry, wrong):
    found = ssh_keys.handed_in(entry)
    assert wrong in found
    assert bool(found) is bool(wrong)


@pytest.mark.parametrize(
    ("text", "fine"),
    [("hv1", True), ("hv1.example.org", True), ("", False), ("../hv1", False), ("a/b", False), (".x", False),
     ("x" * 64, False), ("hv1\n", False), (None, False)],
)  # fmt: skip
def test_an_id_is_the_name_of_a_file(text, fine):
    assert ssh_keys.is_id(text) is fine


def test_each_host_has_its_lines():
    known, authorized = ssh_keys.lines(HOSTS, ENTRIES)
    assert known.splitlines() == [
        ssh_keys.HEADER,
        f"hv1,hv1.example.org,192.0.2.11,2001:db8::11 {TWO} hv1",
        f"hv2,192.0.2.12 {ONE} hv2",
        f"hv2,192.0.2.12 {public('ssh-rsa')} hv2",
    ]
    assert authorized.splitlines() == [
        ssh_keys.HEADER,
        f'restrict,pty,from="192.0.2.11,2001:db8::11" {ONE} hv1',
        f'restrict,pty,from="192.0.2.12" {THREE} hv2',
    ]


def test_a_host_that_cannot_be_fetched_keeps_its_lines_and_no_other_does():
    before = ssh_keys.lines(HOSTS, ENTRIES)
    assert ssh_keys.lines(HOSTS, {"hv2": ENTRIES["hv2"]}, before) == before
    known, authorized = ssh_keys.lines({"hv2": HOSTS["hv2"]}, {}, before)
    assert "hv1" not in known + authorized
    assert THREE in authorized


def test_a_host_that_is_not_listed_itself_trusts_nobody():
    assert list(ssh_keys.others(HOSTS, "hv1")) == ["hv2"]
    assert ssh_keys.others(HOSTS, "hv3") == {}


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        (["hv1"], "['hv1'] is no mapping of minion ids"),
        ({"hv 1": {}}, "hosts: 'hv 1' is no minion id"),
        ({"hv1": "192.0.2.1"}, "hosts:hv1: '192.0.2.1' is no mapping"),
        ({"hv1": {"addresses": ["192.0.2.1"], "keys": []}}, "is no mapping of addresses and names"),
        ({"hv1": {"names": ["hv1"]}}, "hosts:hv1:addresses: at least one is needed"),
        (
            {"hv1": {"addresses": ['fe80::1%x" ssh-ed25519 AAAA\n#']}},
            """hosts:hv1:addresses: 'fe80::1%x" ssh-ed25519 AAAA\\n#' is no IP address""",
        ),
        ({"hv1": {"addresses": ["0.0.0.0/0"]}}, "hosts:hv1:addresses: '0.0.0.0/0' is no IP address"),
        ({"hv1": {"addresses": ["192.0.2.1"], "names": ["a\nMatch all"]}}, "is no host name"),
        ({"hv1": {"addresses": ["192.0.2.1"], "names": ["*"]}}, "hosts:hv1:names: '*' is no host name"),
    ],
)
def test_a_list_of_hosts_that_says_something_else_is_refused(hosts, said):
    assert said in ssh_keys.refused(hosts)


def test_a_sound_list_of_hosts_is_taken():
    assert ssh_keys.refused(HOSTS) == ""
    assert ssh_keys.refused({}) == ""


def test_ssh_believes_our_file_alone_and_only_between_roots():
    text = ssh_keys.client(HOSTS, "/k/id", "/k/known")
    assert "Match localuser root user root host hv1,hv1.example.org,192.0.2.11,2001:db8::11,hv2,192.0.2.12\n" in text
    assert "    UserKnownHostsFile /k/known\n    GlobalKnownHostsFile /k/known\n    StrictHostKeyChecking yes\n" in text


def test_sshd_takes_our_file_from_these_addresses_only_and_roots_own_as_well():
    text = ssh_keys.server(HOSTS, "/k/authorized")
    assert "Match User root Address 192.0.2.11,2001:db8::11,192.0.2.12\n" in text
    assert "AuthorizedKeysFile .ssh/authorized_keys .ssh/authorized_keys2 /k/authorized\n" in text


def test_a_setting_is_found_in_what_ssh_prints():
    dump = "port 22\nauthorizedkeysfile .ssh/authorized_keys /k/a\n\n"
    assert ssh_keys.setting(dump, "authorizedkeysfile") == [".ssh/authorized_keys", "/k/a"]
    assert ssh_keys.setting(dump, "permitrootlogin") == []
