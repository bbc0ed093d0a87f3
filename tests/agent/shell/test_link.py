"""The link over a real Mosquitto that comes, goes, refuses and hangs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skerry_agent.mqtt import LinkDown, LinkEvent, LinkSettings, LinkUp, Message, MqttLink
from support import processes
from support.processes import wait_until

pytestmark = pytest.mark.mosquitto


class Heard:
    def __init__(self) -> None:
        self.events: list[LinkEvent] = []

    def of(self, kind: type[LinkEvent]) -> list[LinkEvent]:
        return [event for event in self.events if isinstance(event, kind)]

    def messages(self) -> list[tuple[str, bytes]]:
        return [(event.topic, event.payload) for event in self.events if isinstance(event, Message)]


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[MqttLink, Heard]]]:
    made: list[MqttLink] = []

    def build(port: int, client_id: str = "device-1", **more: object) -> tuple[MqttLink, Heard]:
        heard = Heard()
        fields = {"broker": f"mqtt://127.0.0.1:{port}", "retry_max_s": 0.3, "connect_timeout_s": 2.0, **more}
        link = MqttLink(LinkSettings(client_id=client_id, **fields), heard.events.append)  # type: ignore[arg-type]
        made.append(link)
        return link, heard

    yield build
    for link in made:
        link.stop()


def test_messages_both_ways_and_the_will(mosquitto: int, make: Callable[..., tuple[MqttLink, Heard]]) -> None:
    watcher, seen = make(mosquitto, "watcher")
    watcher.subscribe("here/#")
    watcher.start()
    wait_until(lambda: seen.of(LinkUp), what="the watcher")
    link, heard = make(mosquitto, will=("here/will", b"gone"))
    link.subscribe("to/me")
    link.start()
    wait_until(lambda: heard.of(LinkUp), what="the link")
    for number in range(50):
        link.publish("here/it/is", bytes([number]) * 70_000)
        watcher.publish("to/me", bytes([number]))
    wait_until(lambda: len(seen.messages()) == 50 and len(heard.messages()) == 50, what="all messages")
    assert [payload[0] for _, payload in seen.messages()] == list(range(50))
    assert [payload for _, payload in heard.messages()] == [bytes([number]) for number in range(50)]
    link.subscribe("to/me/too")
    watcher.publish("to/me/too", b"late")
    wait_until(lambda: ("to/me/too", b"late") in heard.messages() or watcher.publish("to/me/too", b"late"), what="it")
    link.restart()  # the connection is cut without a goodbye: the broker sends the will
    wait_until(lambda: ("here/will", b"gone") in seen.messages(), what="the will")
    wait_until(lambda: len(heard.of(LinkUp)) == 2, what="the new connection")
    link.stop(farewell=("here/bye", b"bye"))
    wait_until(lambda: ("here/bye", b"bye") in seen.messages(), what="the farewell")
    assert seen.messages().count(("here/will", b"gone")) == 1  # a clean end sends no will


def test_a_broker_that_goes_and_comes_back_is_told_once_each(
    mosquitto_program: str, tmp_path: Path, free_port: Callable[[], int], make: Callable[..., tuple[MqttLink, Heard]]
) -> None:
    port = free_port()
    link, heard = make(port)
    link.subscribe("to/me")
    link.start()
    wait_until(lambda: heard.of(LinkDown), what="the first refusal")
    time.sleep(1.0)  # several attempts
    assert len(heard.of(LinkDown)) == 1
    assert "cannot reach 127.0.0.1" in heard.of(LinkDown)[0].reason  # type: ignore[union-attr]
    for number in (1, 2):
        with processes.mosquitto(mosquitto_program, tmp_path, port=port):
            wait_until(lambda number=number: len(heard.of(LinkUp)) == number, what="the broker to be found")
            link.publish("to/me", b"%d" % number)
            wait_until(lambda number=number: len(heard.messages()) == number, what="the subscription to be there again")
        wait_until(lambda: isinstance(heard.events[-1], LinkDown), what="the loss to be noticed")
    assert not link.connected
    link.publish("to/me", b"into the void")


def test_a_wrong_password_is_told_with_what_to_check(
    mosquitto_program: str, tmp_path: Path, make: Callable[..., tuple[MqttLink, Heard]]
) -> None:
    with processes.mosquitto(mosquitto_program, tmp_path, "allow_anonymous false") as port:
        for protocol in ("3.1.1", "5"):
            link, heard = make(port, username="device-1", password="wrong", protocol=protocol)
            link.start()
            wait_until(lambda heard=heard: heard.of(LinkDown), what="the refusal")
            reason = heard.of(LinkDown)[0].reason  # type: ignore[union-attr]
            assert "the broker refused the connection: Not authorized" in reason
            assert "check hub.username and hub.password" in reason
            assert not heard.of(LinkUp)


def test_mqtt_5_by_setting(mosquitto: int, make: Callable[..., tuple[MqttLink, Heard]]) -> None:
    link, heard = make(mosquitto, protocol="5")
    link.subscribe("to/me")
    link.start()
    wait_until(lambda: heard.of(LinkUp), what="the link")
    link.publish("to/me", b"five")
    wait_until(lambda: heard.messages() == [("to/me", b"five")], what="the message")


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1, and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate, private = folder / "broker.pem", folder / "broker.key"
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, private


# paho leaves the socket of a failed handshake to the garbage collector, which closes it and warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tls_with_a_trusted_certificate_and_not_with_another(
    mosquitto_program: str, tmp_path: Path, make: Callable[..., tuple[MqttLink, Heard]]
) -> None:
    certificate, private = _certificate(tmp_path)
    lines = (f"certfile {certificate}", f"keyfile {private}", "user root")
    with processes.mosquitto(mosquitto_program, tmp_path, *lines) as port:
        link, heard = make(port, broker=f"mqtts://127.0.0.1:{port}", ca=str(certificate))
        link.subscribe("to/me")
        link.start()
        wait_until(lambda: heard.of(LinkUp), what="the link over TLS")
        for number in range(40):
            link.publish("to/me", bytes([number]) * 100_000)
        wait_until(lambda: len(heard.messages()) == 40, what="large messages over TLS")
        assert [payload[0] for _, payload in heard.messages()] == list(range(40))
        stranger, refused = make(port, "device-2", broker=f"mqtts://127.0.0.1:{port}")
        stranger.start()
        wait_until(lambda: refused.of(LinkDown), what="the refusal")
        assert "certificate verify failed" in refused.of(LinkDown)[0].reason  # type: ignore[union-attr]
        link.stop()
        stranger.stop()


def test_a_server_that_never_answers_is_given_up(make: Callable[..., tuple[MqttLink, Heard]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        link, heard = make(server.getsockname()[1], connect_timeout_s=0.5)
        link.start()
        wait_until(lambda: heard.of(LinkDown), what="the link to give up")
        assert "did not answer the MQTT greeting" in heard.of(LinkDown)[0].reason  # type: ignore[union-attr]


def test_a_server_that_speaks_nonsense_does_no_harm(make: Callable[..., tuple[MqttLink, Heard]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            server.settimeout(0.2)
            while not stop.is_set():
                try:
                    client, _ = server.accept()
                except TimeoutError:
                    continue
                with client:
                    client.sendall(b"\x20\xff\xff\xff\xff\xff HTTP/1.1 400\r\n" * 20)

        thread = threading.Thread(target=serve)
        thread.start()
        link, heard = make(server.getsockname()[1])
        link.start()
        wait_until(lambda: heard.of(LinkDown), what="the link to give up")
        assert not heard.of(LinkUp)
        stop.set()
        thread.join()


def test_more_than_1024_descriptors_do_not_stop_the_link(
    mosquitto: int, make: Callable[..., tuple[MqttLink, Heard]]
) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    held = [socket.socket() for _ in range(1100)]
    try:
        link, heard = make(mosquitto)
        link.subscribe("to/me")
        link.start()
        wait_until(lambda: heard.of(LinkUp), what="the link")
    finally:
        for one in held:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_stalled_thread_is_seen_and_replaced(mosquitto: int, make: Callable[..., tuple[MqttLink, Heard]]) -> None:
    link, heard = make(mosquitto, stall_s=0.2, connect_timeout_s=0.5)
    hang = threading.Event()
    taken = link._deliver

    def deliver(event: LinkEvent) -> None:  # an adapter that hangs inside the link's thread
        taken(event)
        if isinstance(event, Message) and not hang.is_set():
            hang.wait(20)

    link._deliver = deliver
    link.subscribe("to/me")
    link.start()
    wait_until(lambda: heard.of(LinkUp), what="the link")
    assert not link.stalled(time.monotonic())
    link.publish("to/me", b"hang")
    wait_until(lambda: link.stalled(time.monotonic()), what="the stall to be seen")
    old = link._thread
    link.restart()
    wait_until(lambda: len(heard.of(LinkUp)) == 2, what="the new thread to connect")
    hang.set()
    assert old is not None
    old.join(10)
    assert not old.is_alive()
    link.publish("to/me", b"alive")
    wait_until(lambda: heard.messages()[-1] == ("to/me", b"alive"), what="a message over the new thread")
