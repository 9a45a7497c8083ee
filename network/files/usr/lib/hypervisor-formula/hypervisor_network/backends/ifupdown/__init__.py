"""Debian's ifupdown: stanzas in /etc/network/interfaces.d."""

from .live import Backend

__all__ = ["Backend"]
