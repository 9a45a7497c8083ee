"""Certificates are renewed while a guest runs and moves: neither notices."""

from concurrent.futures import ThreadPoolExecutor

from leaves import CONSOLE, LIBVIRT, QEMU, replace, serial
from support import counts_on, end_guest, migrate, start_guest, state_of

from lab import salt

NAME = "traveller"
HOSTS = ("hv1", "hv2")
MOVES = 8  # and two more in the end


def renew(lab):
    """Run the highstate of both hypervisors."""
    return salt.check_green(salt.highstate(lab.hosts, HOSTS))


def test_leaves_are_rotated_under_a_guest_and_ten_migrations(lab):
    """Every leaf of both hosts ends in five days; the highstate renews them between one migration and the next."""
    leaves = (LIBVIRT, QEMU, CONSOLE)
    start_guest(lab, "hv1", NAME)
    try:
        for host in HOSTS:
            for leaf in leaves:
                replace(lab, host, leaf, days=5)
        old = {(host, leaf): serial(lab, host, leaf) for host in HOSTS for leaf in leaves}
        with ThreadPoolExecutor(1) as pool:
            renewed = None
            for move in range(MOVES):
                source, target = HOSTS[move % 2], HOSTS[(move + 1) % 2]
                migrate(lab, NAME, source, target)
                assert state_of(lab, target, NAME) == "running"
                renewed = renewed or pool.submit(renew, lab)
            assert renewed is not None
            figures = renewed.result(timeout=300)
        for host in HOSTS:
            assert set(figures[host]["changed"]) <= {*(leaf.state for leaf in leaves), "libvirt_certificate_loaded"}
            for leaf in leaves:
                assert serial(lab, host, leaf) != old[host, leaf]
        # With the new ones alone it goes there and back again.
        migrate(lab, NAME, "hv1", "hv2")
        migrate(lab, NAME, "hv2", "hv1")
        counts_on(lab, "hv1", NAME)
        boots = [lab.console(host, NAME).count("guest boot") for host in HOSTS]
        assert sum(boots) == 1, "the guest was restarted"
    finally:
        end_guest(lab, NAME)
