"""Apache Kafka's jars: fetched with Maven once and kept in the user's cache, for its servers and its tools.

TASKQ_TEST_CACHE names another directory to keep them in. `scripts/kafka` runs what is here and in `tests.kafka.cluster`
without any environment of Python's, so these need nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KAFKA_VERSION = "4.3.1"
LOG4J_VERSION = "2.25.1"
JAVA_MIN = 17
FETCH_S = 600.0

_ARTIFACTS = (
    ("org.apache.kafka", "kafka_2.13", KAFKA_VERSION),
    ("org.apache.kafka", "kafka-tools", KAFKA_VERSION),
    # Kafka's POM leaves logging to its installation.
    ("org.apache.logging.log4j", "log4j-slf4j-impl", LOG4J_VERSION),
    ("org.apache.logging.log4j", "log4j-core", LOG4J_VERSION),
    ("org.apache.logging.log4j", "log4j-1.2-api", LOG4J_VERSION),
)
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>taskq</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
  <dependencies>
{dependencies}
  </dependencies>
</project>
""".format(
    dependencies="\n".join(
        f"    <dependency><groupId>{group}</groupId>"
        f"<artifactId>{name}</artifactId><version>{version}</version></dependency>"
        for group, name, version in _ARTIFACTS
    )
)


class Unavailable(Exception):
    """Kafka can't be had here: `need`, of `tests.needs`, is missing or does not do its work."""

    def __init__(self, need: str, reason: str) -> None:
        super().__init__(reason)
        self.need = need
        self.reason = reason


@dataclass(frozen=True)
class Jars:
    """Kafka's jars, and the Java to run them with."""

    java: str
    folder: Path

    def command(self, name: str, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
        """The command line that runs a class."""
        return [self.java, *options, "-cp", f"{self.folder}/*", name, *arguments]


def cache() -> Path:
    """The directory where tests keep what takes long to get."""
    chosen = os.environ.get("TASKQ_TEST_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "taskq-tests"


def fetch() -> Jars:
    """Kafka's jars, from the cache or from Maven."""
    java = _java()
    # Named by what is asked for, so that jars fetched for another POM are never taken for these.
    there = cache() / f"kafka-{KAFKA_VERSION}-{hashlib.sha256(_POM.encode()).hexdigest()[:8]}"
    if not there.is_dir():
        mvn = _program("mvn")
        there.parent.mkdir(parents=True, exist_ok=True)
        with _alone(there.with_name(f"{there.name}.lock")):
            if not there.is_dir():  # else another process was quicker
                _run_maven(mvn, there)
    return Jars(java, there)


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Unavailable(name, f"{name} is not installed")
    return path


def _java() -> str:
    java = _program("java")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None:  # macOS has a program of this name that only tells where to get Java
        raise Unavailable("java", f"java does not run: {said.strip()[:200]}")
    if int(version[1]) < JAVA_MIN:
        raise Unavailable("java", f"Kafka needs Java {JAVA_MIN}, and this is {version[1]}")
    return java


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run_maven(mvn: str, there: Path) -> None:
    with tempfile.TemporaryDirectory(dir=there.parent) as folder:
        (Path(folder) / "pom.xml").write_text(_POM)
        command = [mvn, "--batch-mode", "--quiet", "dependency:copy-dependencies", "-DoutputDirectory=jars"]
        try:
            ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_S)
        except subprocess.TimeoutExpired:
            raise Unavailable("mvn", f"Maven has not fetched Kafka's jars within {FETCH_S:.0f} s") from None
        if ran.returncode:
            raise Unavailable("mvn", f"Maven can't fetch Kafka's jars: {ran.stdout[-500:]}{ran.stderr[-500:]}")
        (Path(folder) / "jars").rename(there)
