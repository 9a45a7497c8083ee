"""A host that has the pillar of this suite: a cluster of one, with the site's key."""


def test_it_has_quorum(host):
    assert "Quorate:          Yes" in host.check_output("corosync-quorumtool -s")


def test_pacemaker_has_taken_it_in(host):
    name = host.check_output("uname -n")
    assert f"Online: [ {name} ]" in host.check_output("crm_mon -1")


def test_the_services_start_with_the_host(host):
    for name in ("corosync", "pacemaker"):
        service = host.service(name)
        assert service.is_running
        assert service.is_enabled


def test_the_key_is_roots_alone(host):
    key = host.file("/etc/corosync/authkey")
    assert (key.user, key.group, key.mode, key.size) == ("root", "root", 0o400, 144)


def test_corosync_has_judged_its_file(host):
    assert host.run("corosync -t").rc == 0
