"""Addresses: their text, the rule about strangers, ports that somebody has."""

import socket

import pytest

from tvix.errors import FailedPrecondition, InvalidInput
from tvix.server.address import Address, claim_port, parse_address, refuse_strangers


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8980", Address("127.0.0.1", 8980)),
        ("[::1]:0", Address("::1", 0)),
        ("localhost:65535", Address("localhost", 65535)),
    ],
)
def test_addresses_survive_a_round_trip(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("8980", "write for example 127.0.0.1:8980"),
        (":8980", "is not HOST:PORT"),
        ("localhost:", "'' is not a port"),
        ("localhost:http", "'http' is not a port"),
        ("localhost:65536", "'65536' is not a port"),
        ("localhost:-1", "'-1' is not a port"),
        ("localhost:٣", "is not a port"),
        ("::1:8980", "in brackets: [::1]:8980"),
    ],
)
def test_malformed_addresses_are_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason.replace("[", r"\[")):
        parse_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_let_through(host: str) -> None:
    refuse_strangers("--grpc", Address(host, 1))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "build.example"])
def test_addresses_that_others_can_reach_are_refused_and_the_message_says_why(host: str) -> None:
    with pytest.raises(FailedPrecondition, match=r"neither TLS nor an authenticator.*--insecure"):
        refuse_strangers("--grpc", Address(host, 1))


def test_a_claimed_port_can_be_shared_by_those_who_say_so() -> None:
    holder, address = claim_port("--grpc", Address("127.0.0.1", 0))
    with holder, socket.socket() as front:
        assert address.port
        front.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        front.bind(address)
        front.listen()
        with socket.create_connection(address):
            connection, _ = front.accept()
            connection.close()


def test_a_port_that_somebody_shares_already_is_refused() -> None:
    holder, address = claim_port("--grpc", Address("127.0.0.1", 0))
    with holder, pytest.raises(FailedPrecondition, match=f"--grpc 127.0.0.1:{address.port}: the port is in use"):
        claim_port("--grpc", address)


def test_a_port_that_somebody_listens_on_is_refused() -> None:
    in_use = pytest.raises(FailedPrecondition, match="the port is in use by another program; choose another")
    with socket.create_server(("127.0.0.1", 0)) as other, in_use:
        claim_port("--http", Address(*other.getsockname()))


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="this machine has no such address"):
        claim_port("--grpc", Address("192.0.2.1", 0))
