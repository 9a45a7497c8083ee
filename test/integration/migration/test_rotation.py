"""Certificates are renewed while a guest runs and moves: neither notices."""

import time
from concurrent.futures import ThreadPoolExecutor

from leaves import CONSOLE, LIBVIRT, QEMU, replace, serial
from support import counts_on, end_guest, migrate, start_guest, state_of

from lab import salt

NAME = "traveller"
HOSTS = ("hv1", "hv2")
MOVES = 8  # at least, and two more in the end
# Shows the certificate that a host's daemon has in its memory, to one who has a certificate too.
SERVED = """
openssl s_client -connect "$1:16514" -cert /etc/pki/libvirt/clientcert.pem -key /etc/pki/libvirt/private/clientkey.pem \
  </dev/null 2>/dev/null | openssl x509 -noout -serial
"""


def renew(lab):
    """Run the highstate of both hypervisors."""
    return salt.check_green(salt.highstate(lab.hosts, HOSTS))


class Traveller:
    """The guest on its way between the hosts.

    Attributes:
        here: where it is.
        there: where it moves next.
    """

    def __init__(self, lab):
        self.lab = lab
        self.here, self.there = HOSTS

    def move(self):
        """Move it to the other host, where it must run."""
        migrate(self.lab, NAME, self.here, self.there)
        assert state_of(self.lab, self.there, NAME) == "running"
        self.here, self.there = self.there, self.here


def test_leaves_are_rotated_under_a_guest_and_ten_migrations(lab):
    """Every leaf of both hosts ends in five days; the highstate renews them while it moves."""
    leaves = (LIBVIRT, QEMU, CONSOLE)
    start_guest(lab, "hv1", NAME)
    guest = Traveller(lab)
    try:
        for host in HOSTS:
            for leaf in leaves:
                replace(lab, host, leaf, days=5)
        old = {(host, leaf): serial(lab, host, leaf) for host in HOSTS for leaf in leaves}
        guest.move()
        with ThreadPoolExecutor(1) as pool:
            renewed, moves, deadline = pool.submit(renew, lab), 1, time.monotonic() + 600
            # It is on its way all the time from before the renewal until after it.
            while moves < MOVES - 1 or not renewed.done():
                assert renewed.done() or time.monotonic() < deadline, "the highstate has not ended"
                guest.move()
                moves += 1
            figures = renewed.result()
        for host in HOSTS:
            assert set(figures[host]["changed"]) <= {*(leaf.state for leaf in leaves), "libvirt_certificate_loaded"}
            for leaf in leaves:
                assert serial(lab, host, leaf) != old[host, leaf]
        for host, other in (HOSTS, HOSTS[::-1]):
            # The daemon was told: what it shows is what is in the file.
            served = lab.run(other, ["sh", "-c", SERVED, "sh", host], timeout=60).stdout
            assert served == serial(lab, host, LIBVIRT)
        guest.move()
        # With the new ones alone it goes there and back again.
        guest.move()
        guest.move()
        counts_on(lab, guest.here, NAME)
        boots = [lab.console(host, NAME).count("guest boot") for host in HOSTS]
        assert sum(boots) == 1, "the guest was restarted"
    finally:
        end_guest(lab, NAME)
