"""The broker of deploy/kafka/compose.yaml, as the program in Apache's image reads its environment.

The image turns KAFKA_* into server.properties, and formats the storage that they name, by a class of Kafka's own.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.support import judges
from tests.support.kafka_broker import java_line
from tests.support.kafka_jars import JVM_OF_TOOLS, KAFKA_VERSION

COMPOSE = Path(__file__).resolve().parents[2] / "deploy/kafka/compose.yaml"
CLUSTER = "AAAAAAAAAAAAAAAAAAAAAQ"


def broker_service() -> str:
    """The service's own lines."""
    found = re.search(r"^  broker:\n((?:    .*\n)+)", COMPOSE.read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def environment() -> dict[str, str]:
    """KAFKA_*, as a container is given it."""
    return {
        name: value.strip('"')
        for name, value in re.findall(r"^      (KAFKA_\w+): (.+)$", broker_service(), re.MULTILINE)
    }


def test_the_image_takes_it_and_the_log_lies_in_the_volume(tmp_path: Path) -> None:
    """What lies beside the volume is lost with the container, acknowledged or not."""
    judges.require("kafka")
    given = environment()
    volume = re.search(r"volumes: \[broker:(\S+)\]", broker_service())
    assert volume is not None and f"image: apache/kafka:{KAFKA_VERSION}\n" in broker_service()
    assert Path(given["KAFKA_LOG_DIRS"]).is_relative_to(volume[1])

    folders = {name: tmp_path / name for name in ("default", "mounted", "final", "data")}
    for folder in folders.values():
        folder.mkdir()
    for name in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):
        (folders["default"] / name).write_text("")
    setup = java_line(*JVM_OF_TOOLS, "kafka.docker.KafkaDockerWrapper")
    places = [
        word for name in ("default", "mounted", "final") for word in (f"--{name}-configs-dir", str(folders[name]))
    ]
    env = os.environ | given | {"KAFKA_LOG_DIRS": str(folders["data"]), "CLUSTER_ID": CLUSTER}
    done = subprocess.run([*setup, "setup", *places], check=False, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert CLUSTER in (folders["data"] / "meta.properties").read_text(), "formatted where it is told"
    written = (folders["final"] / "server.properties").read_text()
    for line in ("advertised.listeners=PLAINTEXT://broker:9092", "auto.create.topics.enable=false", "node.id=1"):
        assert line in written.splitlines()
