"""Apache Kafka for the tests: which jars, how Maven gets them, and where they lie.

`.cache/judges/kafka` holds Kafka and what it needs, copied by Maven's dependency plugin; it runs on Java 17.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

KAFKA_VERSION = "4.3.1"
_LOG4J_VERSION = "2.25.4"  # without it a broker says nothing
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_TIME_LIMIT_S = 600
JVM_OF_TOOLS = ("-Xmx128m", "-XX:TieredStopAtLevel=1")
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>replicator</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{kafka}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{kafka}</version>
      <exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>{log4j}</version>
    </dependency>
  </dependencies>
</project>
"""


class MavenError(Exception):
    """The jars can't be had."""


def wanted_text() -> str:
    """What the stamp file must say for the jars to be left alone."""
    return f"kafka_2.13, kafka-tools {KAFKA_VERSION}, log4j-slf4j-impl {_LOG4J_VERSION}\n"


def is_fetched(judges: Path) -> bool:
    """Whether the jars of today's version are there."""
    stamp = judges / "kafka.packages"
    return stamp.exists() and stamp.read_text() == wanted_text() and (judges / "kafka").is_dir()


def fetch(judges: Path) -> None:
    """Copy the jars into `judges`/kafka, made beside and renamed into place."""
    maven = shutil.which("mvn")
    if maven is None or shutil.which("java") is None:
        raise MavenError("mvn and java aren't here: on Debian, apt-get install maven openjdk-17-jre-headless")
    beside, final = judges / "kafka.new", judges / "kafka"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    (beside / "pom.xml").write_text(_POM.format(kafka=KAFKA_VERSION, log4j=_LOG4J_VERSION))
    argv = [maven, "-q", "-B", _COPY, "-DincludeScope=runtime", f"-DoutputDirectory={beside / 'libs'}"]
    done = subprocess.run(argv, cwd=beside, capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False)
    if done.returncode:
        raise MavenError(f"mvn ended with {done.returncode}: {done.stdout[-1000:]}")
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    (judges / "kafka.packages").write_text(wanted_text())
