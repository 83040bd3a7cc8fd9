"""Network addresses of the server: parsing, the rule about strangers, holding a port before it is served.

A port is served by several processes at once (SO_REUSEPORT), none of which can tell whether somebody
else has it already: with that option two servers of one user share a port without an error. So the
supervisor claims it first, and keeps it for as long as it lives.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import NamedTuple

from tvix.errors import FailedPrecondition, InvalidInput


class Address(NamedTuple):
    """Where to listen. Port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """Return the address written `HOST:PORT`, `[IPV6]:PORT`; InvalidInput says what is wrong with it."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise InvalidInput(f"{text!r}: write an IPv6 address in brackets: [{host}]:{port}")
    if not colon or not host:
        raise InvalidInput(f"{text!r} is not HOST:PORT; write for example 127.0.0.1:8980")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidInput(f"{text!r}: {port!r} is not a port (0 to 65535)")
    return Address(host, int(port))


def refuse_strangers(option: str, address: Address) -> None:
    """Raise unless `address` is a loopback address: there is no telling callers apart yet."""
    if not address.is_loopback:
        raise FailedPrecondition(
            f"{option} {address}: anybody who reaches this address could read and replace what is stored, poison the "
            "action cache and run programs as this user, because there is neither TLS nor an authenticator. "
            "Use 127.0.0.1, or say --insecure if everybody who can reach it may do all that."
        )


def claim_port(option: str, address: Address) -> tuple[socket.socket, Address]:
    """Take the port, so that nobody else can; return the holding socket and the address with its real port.

    The socket never listens: processes that listen with SO_REUSEPORT share the port with it.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # Without SO_REUSEPORT the bind fails if anybody has the port, whatever options they set.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.host, address.port))
            port = int(probe.getsockname()[1])
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((address.host, port))
    except OSError as error:
        raise FailedPrecondition(f"{option} {address}: {_reason(error)}; choose another with {option}") from error
    return holder, Address(address.host, port)


def _reason(error: OSError) -> str:
    known = {98: "the port is in use by another program", 99: "this machine has no such address"}
    return known.get(error.errno or 0, error.strerror or str(error))
