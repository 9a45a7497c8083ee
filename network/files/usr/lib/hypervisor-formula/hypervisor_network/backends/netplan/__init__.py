"""netplan with networkd below it: YAML files in /etc/netplan."""

from .live import Backend

__all__ = ["Backend"]
