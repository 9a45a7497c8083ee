"""Certificates that are wrong in one way each: who refuses them, in which words, and what the next run repairs."""

import json
import re

import pytest
from leaves import CONSOLE, LIBVIRT, QEMU, replace
from support import end_guest, migrate, start_guest, state_of

TLS = "qemu+tls://hv2/system"
GUEST = "stayer"
OTHER = {"libvirt": "qemu", "qemu": "console", "console": "libvirt"}


@pytest.fixture(scope="module")
def guest(lab):
    """A guest on hv2 that would like to go to hv1."""
    start_guest(lab, "hv2", GUEST)
    yield GUEST
    end_guest(lab, GUEST)


def applied(lab, *options):
    """Run what guards certificates on hv1; return the result of each state by its id."""
    argv = ["salt-call", "--out=json", "--log-level=quiet", "state.sls", "libvirt.service", *options]
    done = lab.run("hv1", argv, check=False, timeout=120)
    return {row["__id__"]: row for row in json.loads(done.stdout)["local"].values()}


def expired(lab, leaf):
    replace(lab, "hv1", leaf, days=-1)


def wrong_ca(lab, leaf):
    replace(lab, "hv1", leaf, foreign=True)


def other_purpose(lab, leaf):
    replace(lab, "hv1", leaf, purpose=OTHER[leaf.purpose])


def wrong_name(lab, leaf):
    replace(lab, "hv1", leaf, name="hv9")


def missing(lab, leaf):
    lab.run("hv1", ["rm", leaf.cert])


def world_readable(lab, leaf):
    lab.run("hv1", ["chmod", "0644", leaf.key])


# Why the state replaces it, and in which words libvirt and QEMU refuse it. Without a certificate, or with one of
# another name, it is the other side that ends the connection; libvirt 11 tells what that has found.
CASES = {
    expired: ("it has expired", "has expired", "has expired"),
    wrong_ca: ("another CA signed the certificate", "not trusted", "not trusted"),
    other_purpose: ("another CA signed the certificate", "known issuer", "known issuer"),
    wrong_name: ("its common name is not hv1", "TLS confirmation", "TLS channel|not match the hostname hv1"),
    missing: ("there is no certificate", "TLS confirmation", "Unable to access credentials"),
    # Whoever may read a key makes no difference to libvirt and QEMU: only the state sees it.
    world_readable: ("others could read the key (mode 0644)", "", ""),
}


@pytest.mark.parametrize("fault", CASES, ids=lambda fault: fault.__name__)
def test_a_bad_leaf_is_refused_and_replaced_as_predicted(lab, guest, let_in, fault):
    why, of_libvirt, of_qemu = CASES[fault]
    leaves = (LIBVIRT, QEMU, CONSOLE)
    # A daemon leaves when it is idle, and one that starts with a bad certificate of its own would end at once.
    lab.run("hv1", ["virsh", "--connect", "qemu:///system", "list"])
    for leaf in leaves:
        fault(lab, leaf)

    if of_libvirt:
        done = lab.run("hv1", ["virsh", "--connect", TLS, "list"], check=False, timeout=60)
        assert done.returncode != 0
        assert of_libvirt in done.stderr
        # In most of these words virsh refused itself. The server has to refuse them too, for a client that would not.
        if fault is not missing:
            assert not let_in(LIBVIRT.cert, LIBVIRT.key)
        # hv1's daemon still serves the good certificate from its memory, so that it is QEMU who refuses.
        done = migrate(lab, guest, "hv2", "hv1", check=False)
        assert done.returncode != 0
        assert re.search(of_qemu, done.stderr), done.stderr
        assert state_of(lab, "hv2", guest) == "running"

    predicted = applied(lab, "test=True")
    happened = applied(lab)
    for leaf in leaves:
        assert why in predicted[leaf.state]["changes"]["certificate"]["why"]
        assert why in happened[leaf.state]["changes"]["certificate"]["why"]
    foreseen = {name for name, row in predicted.items() if row["result"] is None}
    assert foreseen == {name for name, row in happened.items() if row["changes"]}
    assert foreseen == {*(leaf.state for leaf in leaves), "libvirt_certificate_loaded"}
    assert all(row["result"] for row in happened.values()), happened
    assert lab.run("hv1", ["virsh", "--connect", TLS, "list"]).returncode == 0
    assert let_in(LIBVIRT.cert, LIBVIRT.key)
