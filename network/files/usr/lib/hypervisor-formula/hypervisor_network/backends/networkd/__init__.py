"""systemd-networkd: .netdev and .network files in /etc/systemd/network."""

from .live import Backend

__all__ = ["Backend"]
