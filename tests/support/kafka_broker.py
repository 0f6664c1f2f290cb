"""A real broker: Apache Kafka in KRaft mode on the loopback, with two listeners, kept small.

    Broker    one of a test's own: start, kill, stop, pause and go on, copy its disk and put it back
    shared    one for the whole test run, shared by xdist's workers, started by whoever needs it first

    listener   who may come in
    plain      everybody
    secure     TLS with the certificate authority of the broker's folder, and SCRAM-SHA-512 or PLAIN: USER, who may do
               all, and those of deploy/kafka/acls.sh (PLAIN), who may do what rules allow

The shared one lies in a folder that all workers know. Each worker holds `users` (flock, shared) as long as it runs; a
keeper, beside the broker and a child of nobody, waits until it can take it alone, ends the broker by its process id,
and removes the folder. So nothing is left after the last worker, however that one ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from replicator.errors import UnavailableError
from replicator.log.kafka import Client
from replicator.log.kafka_address import parse_kafka_url
from replicator.log.kafka_probe import probe
from tests.support import certificates, judges, leftovers
from tests.support.kafka_jars import JVM_OF_TOOLS

USER, PASSWORD = "admin", "correct-horse"
_CLUSTER = "AAAAAAAAAAAAAAAAAAAAAQ"
_START_LIMIT_S = 60.0
_FIRST_PORT, _PORTS = 20_000, 12_000  # below what Linux gives to outgoing connections
_HEAP = ("-Xms256m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:MaxMetaspaceSize=160m")
_SMALL = ("-XX:ReservedCodeCacheSize=64m", "-XX:MaxDirectMemorySize=128m", "-Xss512k", "-XX:-UsePerfData")
_LOGGING = """<Configuration status="ERROR"><Appenders><Console name="out"><PatternLayout pattern="%d %p %c %m%n"/>
</Console></Appenders><Loggers><Root level="WARN"><AppenderRef ref="out"/></Root></Loggers></Configuration>
"""
_PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{control}
listeners=PLAINTEXT://127.0.0.1:{plain},SECURE://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{control}
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SECURE://localhost:{secure}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL
sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}" user_agent="{password}" user_receiver="{password}" user_keeper="{password}";
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location={folder}/server.pem
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:{user}
log.dirs={folder}/data
log.flush.start.offset.checkpoint.interval.ms=1000
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
log.cleaner.dedupe.buffer.size=2097152
num.network.threads=2
num.io.threads=2
broker.session.timeout.ms=1000
broker.heartbeat.interval.ms=200
"""


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on, and that no outgoing connection is given by the system."""
    found: list[int] = []
    port = _FIRST_PORT + os.getpid() * 37 % _PORTS
    while len(found) < count:
        port = _FIRST_PORT + (port + 1 - _FIRST_PORT) % _PORTS
        with contextlib.suppress(OSError), socket.socket() as tried:
            tried.bind(("127.0.0.1", port))
            found.append(port)
    return found


@dataclass(slots=True)
class Broker:
    """A broker with its disk in `folder`; `start` it, and end it in any way."""

    folder: Path
    ports: tuple[int, int, int] = (0, 0, 0)
    options: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.ports[0]:
            plain, secure, control = free_ports(3)
            self.ports = (plain, secure, control)

    @property
    def address(self) -> str:
        """HOST:PORT of the plain listener."""
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def secure_address(self) -> str:
        """HOST:PORT of the listener with TLS and SASL."""
        return f"localhost:{self.ports[1]}"

    @property
    def pid(self) -> int:
        """The broker's process."""
        assert self._process is not None, "start it first"
        return self._process.pid

    def url(self, prefix: str, **options: str) -> str:
        """The log's URL over the plain listener, with a short limit; trimming minds no age."""
        given = {"timeout": "10s", "keep": "0s", "replicas": "1", **options}
        return f"kafka://{self.address}/{prefix}?" + "&".join(f"{name}={value}" for name, value in given.items())

    def format(self) -> None:
        """Make the disk, the certificates and the settings."""
        self.folder.mkdir(parents=True, exist_ok=True)
        certificates.make_certificates(self.folder / "tls")
        tls = self.folder / "tls"
        names = ("server-key.pem", "server-cert.pem", "ca-cert.pem")
        (self.folder / "server.pem").write_text("".join((tls / name).read_text() for name in names))
        (self.folder / "log4j2.xml").write_text(_LOGGING)
        plain, secure, control = self.ports
        given = {"plain": plain, "secure": secure, "control": control, "user": USER, "password": PASSWORD}
        (self.folder / "server.properties").write_text(_PROPERTIES.format(folder=self.folder, **given))
        scram = f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"
        tool = java_line(*JVM_OF_TOOLS, "kafka.tools.StorageTool")
        argv = [*tool, "format", "--standalone", "-t", _CLUSTER, "-c", "server.properties", "--add-scram", scram]
        subprocess.run(argv, cwd=self.folder, stdout=subprocess.DEVNULL, check=True, timeout=_START_LIMIT_S)

    def start(self) -> Broker:
        """Start it on the disk as it is, and wait until it serves."""
        if not (self.folder / "server.properties").exists():
            self.format()
        with (self.folder / "output").open("ab") as output:
            self._process = self._popen(output)
        self.await_ready()
        return self

    def argv(self) -> list[str]:
        """The broker's command line, to be run in `folder`."""
        archive = (f"-XX:SharedArchiveFile={_archive()}",) if _archive().exists() else ()
        options = (*_HEAP, *_SMALL, *(self.options or archive), "-Dlog4j2.configurationFile=log4j2.xml")
        return [*java_line(*options, "kafka.Kafka"), "server.properties"]

    def _popen(self, output: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.argv(), cwd=self.folder, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )

    def await_ready(self) -> None:
        """Until a topic can be made."""
        until = time.monotonic() + _START_LIMIT_S
        self._await_port(until)
        while True:
            address = parse_kafka_url(self.url("ready", timeout="1s"))
            client = Client(address)
            try:
                probe(address)  # the client leaves a socket behind wherever it is refused
                client.create_topic(f"ready-{time.time_ns()}", {})
                return
            except UnavailableError as error:
                if time.monotonic() > until:
                    said = (self.folder / "output").read_text(errors="replace")[-2000:]
                    raise AssertionError(f"the broker doesn't serve: {error}\n{said}") from error
            finally:
                client.close()

    def _await_port(self, until: float) -> None:
        """Until somebody listens: a client's tries would take the time that the broker needs."""
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.ports[0]), 1).close()
                return
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: it holds its connections, and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, signal_: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal_)
        try:
            process.wait(_START_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def save_disk(self, name: str) -> None:
        """Copy the disk of a broker that doesn't run."""
        shutil.copytree(self.folder / "data", self.folder / name)

    def restore_disk(self, name: str) -> None:
        """Put a copy back."""
        shutil.rmtree(self.folder / "data")
        shutil.copytree(self.folder / name, self.folder / "data")

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def make_archive() -> None:
    """Let a broker write down its classes as loaded: another one starts in half the time."""
    with tempfile.TemporaryDirectory() as folder:
        archiving = (f"-XX:ArchiveClassesAtExit={_archive()}",)
        Broker(Path(folder) / "broker", options=archiving).start().stop()


def acl_tool(folder: Path) -> Path:
    """Kafka's `kafka-acls.sh` in `folder`: its script only finds the jars, and calls this class."""
    path = folder / "kafka-acls.sh"
    path.write_text(
        f'#!/bin/sh\nexec {shlex.join(java_line(*JVM_OF_TOOLS, "org.apache.kafka.tools.AclCommand"))} "$@"\n'
    )
    path.chmod(0o755)
    return path


def _archive() -> Path:
    return judges.JUDGES / "kafka" / "classes.jsa"


def java_line(*words: str) -> list[str]:
    """What runs a class of Kafka's: the JVM's options, and the class."""
    *options, main = words
    return ["java", *options, "-cp", f"{judges.JUDGES / 'kafka' / 'libs'}/*", main]


@functools.cache
def shared() -> Broker:
    """The test run's broker; this process holds on to it until it ends."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"{os.getpid()}"
    folder = Path(tempfile.gettempdir()) / f"replicator-kafka-{run}"
    folder.mkdir(exist_ok=True)
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    users = os.open(
        folder / "users", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
    )  # kept open: it is what the keeper waits for
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        return _joined(folder)
    finally:
        os.close(lock)


def _joined(folder: Path) -> Broker:
    """The broker that runs, or a new one with its keeper; under the lock."""
    facts = folder / "ports"
    if facts.exists():
        plain, secure, control = map(int, facts.read_text().split())
        return Broker(folder, (plain, secure, control))
    broker = Broker(folder)
    broker.format()
    command = " ".join(map(shlex.quote, broker.argv()))
    ending = f"flock -x users true; kill -KILL $broker; wait $broker; rm -rf {shlex.quote(str(folder))}"
    script = f"({command} >>output 2>&1 & broker=$!; {ending}) >/dev/null 2>&1 &"
    environment = {name: value for name, value in os.environ.items() if name != leftovers.MARK}
    subprocess.run(["setsid", "sh", "-c", script], cwd=folder, env=environment, check=True)
    broker.await_ready()
    facts.write_text(" ".join(map(str, broker.ports)))
    return broker
