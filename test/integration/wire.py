"""What passes between the machines of a lab, as seen from outside of them: while they boot and end, too."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

ESP, GRE = "50", "47"
# Counts IPv4 packets by protocol on one interface until its standard input ends. ESP in UDP counts as ESP.
SNIFFER = r"""
import json, select, socket, struct, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
SO_RCVBUFFORCE, SOL_PACKET, PACKET_STATISTICS = 33, 263, 6
link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
link.bind((sys.argv[1], 0))
found = {}
print("ready", flush=True)
while True:
    readable, _, _ = select.select([link, sys.stdin], [], [])
    if link in readable:
        frame = link.recv(4096)
        if frame[12:14] == b"\x08\x00":
            found[frame[23]] = found.get(frame[23], 0) + 1
    elif sys.stdin in readable:
        break
_, dropped = struct.unpack("II", link.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
print(json.dumps({"packets": found, "dropped": dropped}), flush=True)
"""


@dataclass
class Wire:
    """Packets by number of their protocol; filled when the watch has ended."""

    packets: dict[str, int] = field(default_factory=dict)

    def count(self, protocol: str) -> int:
        """Return how many packets of a protocol have passed."""
        return self.packets.get(protocol, 0)


@contextlib.contextmanager
def watched(lab: str, tap: str) -> Iterator[Wire]:
    """Watch a machine's card, on the outside."""
    wire = Wire()
    argv = ["nsenter", f"--net=/run/netns/lab-{lab}", "python3", "-c", SNIFFER, tap]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield wire
            # What is under way still counts.
            time.sleep(0.5)
        finally:
            process.stdin.close()
            said = process.stdout.readline()
        assert said, f"nobody has watched {tap} to the end"
        found = json.loads(said)
        # What was not seen may have been anything.
        assert found["dropped"] == 0
        wire.packets = found["packets"]
