"""Addresses that a server of ours is asked to listen at."""

import ipaddress
import socket

from tasks.errors import InputError


def loopback(host: str) -> bool:
    """Whether nobody but this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def demand_free(host: str, port: int) -> None:
    """Else another's server would answer in place of ours. Raises InputError."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"{host}:{port} cannot be had: {error.strerror}; choose another port") from None
