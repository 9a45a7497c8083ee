"""The main job: bare hosts become hypervisors by one highstate, as predicted, and the second one is silent."""

import pytest
from support import PLATFORM

from lab import salt

RELEASES = {PLATFORM: "first", **({} if PLATFORM == "debian-13" else {"debian-13": "first13"})}


@pytest.fixture(params=RELEASES, ids=list(RELEASES))
def run(request):
    return request.getfixturevalue(RELEASES[request.param])


def ids(answer, wanted):
    """Return the ids of the states whose row satisfies a condition."""
    return {row["__id__"] for row in answer.values() if wanted(row)}


def test_every_state_is_green_on_every_host(run):
    assert set(run.done) == set(run.hosts)
    for host, answer in run.done.items():
        assert isinstance(answer, dict), f"{host}: {answer}"
        assert answer
    assert not any(run.failures().values()), run.failures()


def test_hypervisors_were_changed(run):
    # Else the other tests would prove nothing.
    for host in run.hosts:
        if host.startswith("hv"):
            assert len(salt.summary(run.done[host])["changed"]) > 10


def test_prediction_touches_nothing(run):
    assert {host: found for host, found in run.touched.items() if found} == {}


def test_prediction_is_what_happened(run):
    for host in run.hosts:
        predicted = ids(run.predicted[host], lambda row: row["result"] is None)
        happened = ids(run.done[host], lambda row: bool(row["changes"]))
        assert predicted == happened, host
        assert ids(run.predicted[host], lambda row: row["result"] is False) == set(), host


def test_second_run_changes_nothing(run):
    for host, answer in run.second.items():
        assert {row["__id__"]: row["changes"] for row in answer.values() if row["changes"]} == {}, host
        assert all(row["result"] is True for row in answer.values()), host
    assert {host: found for host, found in run.second_touched.items() if found} == {}


def test_prediction_after_the_run_is_silent(lab):
    for host, answer in salt.highstate(lab.hosts, test=True).items():
        assert {row["__id__"]: row["changes"] for row in answer.values() if row["result"] is not True} == {}, host


def test_debian_13_serves_tls_too(fresh13, first13):
    assert first13.green, first13.failures()
    done = fresh13.run("hv1", ["virsh", "--connect", "qemu+tls://hv1/system", "capabilities"])
    assert "<domain type='qemu'" in done.stdout or "<domain type='kvm'" in done.stdout
