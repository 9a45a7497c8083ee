"""NetworkManager: keyfiles in /etc/NetworkManager/system-connections."""

from .live import Backend

__all__ = ["Backend"]
