"""Apache Kafka's own tools, for tests: their jars are fetched with Maven once and kept in the user's cache.

TASKQ_TEST_CACHE names another directory to keep them in.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from attrs import frozen

from tests.needs import missing, require

KAFKA_VERSION = "4.3.1"
LOG4J_VERSION = "2.25.1"
FETCH_S = 600.0

# Kafka's POM leaves logging to its installation.
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>taskq</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
      <version>{LOG4J_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-core</artifactId><version>{LOG4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""


def _cache() -> Path:
    chosen = os.environ.get("TASKQ_TEST_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "taskq-tests"


def fetch_jars() -> Path:
    """The directory with Kafka's jars, or the end of the test if they can't be had."""
    mvn = require("mvn")
    there = _cache() / f"kafka-{KAFKA_VERSION}"
    if there.is_dir():
        return there
    there.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=there.parent) as folder:
        (Path(folder) / "pom.xml").write_text(_POM)
        command = [mvn, "--batch-mode", "--quiet", "dependency:copy-dependencies", "-DoutputDirectory=jars"]
        try:
            ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_S)
        except subprocess.TimeoutExpired:
            missing("mvn", f"Maven has not fetched Kafka's jars within {FETCH_S} s")
        if ran.returncode:
            missing("mvn", f"Maven can't fetch Kafka's jars: {ran.stdout[-500:]}{ran.stderr[-500:]}")
        try:
            (Path(folder) / "jars").rename(there)
        except OSError:
            if not there.is_dir():  # else another test run was quicker
                raise
            shutil.rmtree(Path(folder) / "jars")
    return there


@frozen
class DumpLogSegments:
    """`kafka-dump-log`."""

    java: str
    jars: Path

    def run(self, *options: str, files: list[Path]) -> str:
        """What it prints of these files, standard error included."""
        ran = subprocess.run(
            [
                self.java,
                "-XX:TieredStopAtLevel=1",
                "-cp",
                f"{self.jars}/*",
                "org.apache.kafka.tools.DumpLogSegments",
                *options,
                "--files",
                ",".join(map(str, files)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=50,
        )
        assert ran.returncode == 0, ran.stdout
        return ran.stdout


@frozen
class KafkaBatch:
    """A batch as Kafka's tool prints it."""

    base_offset: int
    last_offset: int
    count: int
    is_valid: bool
    create_time_ms: int


_BATCH = re.compile(
    r"^baseOffset: (\d+) lastOffset: (\d+) count: (\d+) .* CreateTime: (-?\d+) .* isvalid: (true|false)$", re.MULTILINE
)


def batches(printed: str) -> list[KafkaBatch]:
    """The batches in what `DumpLogSegments.run` returned."""
    return [
        KafkaBatch(int(base), int(last), int(count), valid == "true", int(time))
        for base, last, count, time, valid in _BATCH.findall(printed)
    ]
