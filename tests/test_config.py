"""Where settings come from, which is stronger, and what a malformed one is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from taskq.config import (
    Durability,
    Settings,
    check_group,
    check_topic,
    did_you_mean,
    load_settings,
    plain_settings,
    with_overrides,
)
from taskq.errors import ConfigError
from taskq.topics import TopicConfig
from taskq.urls import path_of

SECRET = "s" * 16


def project(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pyproject.toml"
    file.write_text(text, encoding="utf-8")
    return file


def load(folder: Path, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    return load_settings(cwd=folder, environ=environ or {}, **overrides)


def test_the_default_broker_stands_next_to_the_nearest_pyproject(tmp_path: Path) -> None:
    project(tmp_path, "[project]\nname = 'x'\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)

    assert load(below).broker == (tmp_path / ".taskq").as_uri()
    assert load(below) == load(tmp_path)


def test_without_a_pyproject_the_default_broker_stands_in_the_working_directory(tmp_path: Path) -> None:
    assert load(tmp_path).broker == (tmp_path / ".taskq").as_uri()


def test_an_argument_beats_a_variable_beats_pyproject_beats_the_default(tmp_path: Path) -> None:
    assert load(tmp_path).concurrency == 16
    project(tmp_path, "[tool.taskq]\nconcurrency = 2\n")
    assert load(tmp_path).concurrency == 2
    assert load(tmp_path, {"TASKQ_CONCURRENCY": "3"}).concurrency == 3
    assert load(tmp_path, {"TASKQ_CONCURRENCY": "3"}, concurrency=4).concurrency == 4


def test_an_argument_of_none_and_an_empty_variable_count_as_not_given(tmp_path: Path) -> None:
    assert load(tmp_path, {"TASKQ_APP": ""}, broker=None) == load(tmp_path)


def test_the_nearest_pyproject_is_the_only_one_that_counts(tmp_path: Path) -> None:
    project(tmp_path, "[tool.taskq]\nconcurrency = 2\n")
    project(tmp_path / "inner", "[project]\nname = 'inner'\n")

    assert load(tmp_path / "inner").concurrency == 16


def test_a_relative_path_is_relative_to_what_says_it(tmp_path: Path) -> None:
    project(tmp_path, "[tool.taskq]\nbroker = 'var/../log'\n")
    below = tmp_path / "below"
    below.mkdir()

    assert load(below).broker == (tmp_path / "log").as_uri()
    assert load(below, {"TASKQ_BROKER": "../log"}).broker == (tmp_path / "log").as_uri()
    assert load(below, broker=Path("log")).broker == (below / "log").as_uri()


@pytest.mark.parametrize(
    ("said", "url"),
    [
        ("/var/lib/taskq", "file:///var/lib/taskq"),
        ("file:///var/lib/taskq/", "file:///var/lib/taskq"),
        ("file://localhost/var", "file:///var"),
        ("memory:", "memory:"),
        ("kafka://h1:9092,h2:9092", "kafka://h1:9092,h2:9092"),
        ("kafka://h1,[::1]:9/", "kafka://h1:9092,[::1]:9"),
        (
            "kafka://h1?sasl.password=a%26b&security.protocol=SASL_SSL",
            "kafka://h1:9092?sasl.password=a%26b&security.protocol=SASL_SSL",
        ),
    ],
)
def test_a_broker_becomes_an_absolute_url(tmp_path: Path, said: str, url: str) -> None:
    assert load(tmp_path, broker=said).broker == url


def test_a_directory_of_any_name_survives_being_a_url(tmp_path: Path) -> None:
    folder = tmp_path / "a b#c?d%20e\N{LATIN SMALL LETTER E WITH ACUTE}"

    assert path_of(load(tmp_path, broker=folder).broker) == folder
    assert path_of(load(tmp_path, broker=load(tmp_path, broker=folder).broker).broker) == folder


@pytest.mark.parametrize(
    "broker",
    [
        "file:relative",
        "file://host/path",
        "redis://localhost",
        "memory:x",
        "kafka://",
        "kafka://h1,",
        "kafka://user@h1",
        "kafka://h1?linger.ms",
        "kafka://h1?linger.ms=1&linger.ms=2",
        "kafka://h1?group.id=mine",
        "kafka://h1?acks=1",
        "kafka://h1?delivery.report.only.error=true",
        "kafka://h1?error_cb=print",
        "kafka://h1?group.instance.id=mine",
        "kafka://h1?partition.assignment.strategy=cooperative-sticky,range",
        "kafka://h1?Linger=1",
        "kafka://h:0",
        "a\0b",
    ],
)
def test_a_malformed_broker_is_named_with_its_source(tmp_path: Path, broker: str) -> None:
    with pytest.raises(ConfigError, match="TASKQ_BROKER"):
        load(tmp_path, {"TASKQ_BROKER": broker})


def test_an_unknown_kind_of_broker_names_near_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean kafka"):
        load(tmp_path, broker="kafak://h:1")


def test_an_unknown_key_names_its_file_and_near_keys(tmp_path: Path) -> None:
    file = project(tmp_path, "[tool.taskq]\nconcurency = 2\n")

    with pytest.raises(ConfigError, match="did you mean concurrency") as caught:
        load(tmp_path)
    assert str(file) in str(caught.value)


def test_an_unknown_override_names_near_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean broker"):
        load(tmp_path, brokr="x")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TASKQ_CONCURRENCY", "many"),
        ("TASKQ_CONCURRENCY", "0"),
        ("TASKQ_CONCURRENCY", "1.5"),
        ("TASKQ_METRICS_PORT", "65536"),
        ("TASKQ_METRICS_PORT", "tcp://10.0.0.1:80"),
        ("TASKQ_DRAIN_TIMEOUT_S", "nan"),
        ("TASKQ_DURABILITY", "interval"),
        ("TASKQ_DURABILITY", "interval:0"),
        ("TASKQ_DURABILITY", "always"),
        ("TASKQ_DEFAULT_GROUP", "a/b"),
        ("TASKQ_DEFAULT_TOPIC", ".."),
        ("TASKQ_DIRECTORY_MODE", "0777"),
        ("TASKQ_SECRET", "short"),
        ("TASKQ_SECRET", f"{SECRET},"),
        ("TASKQ_APP", " "),
    ],
)
def test_a_malformed_variable_is_named(tmp_path: Path, variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        load(tmp_path, {variable: value})


@pytest.mark.parametrize(
    "text",
    [
        "tool = 1\n[",
        "[tool]\ntaskq = 1\n",
        "[tool.taskq]\nconcurrency = true\n",
        "[tool.taskq]\nconcurrency = 1.5\n",
        "[tool.taskq]\napp = 1\n",
        "[tool.taskq]\ntopics = 1\n",
        "[tool.taskq.topics.posts]\npartition = 4\n",
        "[tool.taskq.topics.posts]\n",
        "[tool.taskq.topics.posts]\nretention_ms = 'long'\n",
        "[tool.taskq.topics.posts]\nunfinished = 'maybe'\n",
        "[tool.taskq.topics]\nposts = 0\n",
        "[tool.taskq.topics.'a b']\npartitions = 4\n",
        "[tool.taskq]\ndurability = 'fsnc'\n",
    ],
)
def test_a_malformed_pyproject_is_named(tmp_path: Path, text: str) -> None:
    file = project(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert str(file) in str(caught.value)


def test_a_pyproject_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(b"\xff")

    with pytest.raises(ConfigError, match=r"pyproject\.toml"):
        load(tmp_path)


def test_topics_say_their_partitions(tmp_path: Path) -> None:
    project(tmp_path, "[tool.taskq]\npartitions = 4\n[tool.taskq.topics.posts]\npartitions = 32\n")

    settings = load(tmp_path)
    assert settings.partitions == 4
    assert dict(settings.topics) == {"posts": TopicConfig(32)}
    assert dict(load(tmp_path, topics={"feed": 2}).topics) == {"feed": TopicConfig(2)}


def test_topics_say_their_settings(tmp_path: Path) -> None:
    project(
        tmp_path, "[tool.taskq.topics.posts]\nretention_ms = '12h'\nsegment_bytes = '64MiB'\nunfinished = 'delete'\n"
    )

    (config,) = load(tmp_path).topics.values()
    said = {"retention_ms": 12 * 3_600_000, "segment_bytes": 64 << 20, "unfinished": "delete"}
    assert (config.partitions, dict(config.settings)) == (None, said)


def test_offset_reset_is_one_of_two(tmp_path: Path) -> None:
    assert load(tmp_path).offset_reset == "earliest"
    assert load(tmp_path, {"TASKQ_OFFSET_RESET": "error"}).offset_reset == "error"
    with pytest.raises(ConfigError, match=r"TASKQ_OFFSET_RESET.*latest"):
        load(tmp_path, {"TASKQ_OFFSET_RESET": "latest"})


def test_secrets_come_from_the_environment_in_order_and_are_not_shown(tmp_path: Path) -> None:
    settings = load(tmp_path, {"TASKQ_SECRET": f"new-{SECRET}, old-{SECRET}"})

    assert settings.secrets == (f"new-{SECRET}".encode(), f"old-{SECRET}".encode())
    assert SECRET not in repr(settings)


def test_a_secret_in_pyproject_is_refused(tmp_path: Path) -> None:
    project(tmp_path, f"[tool.taskq]\nsecret = '{SECRET}'\n")

    with pytest.raises(ConfigError, match="TASKQ_SECRET"):
        load(tmp_path)


def test_a_malformed_secret_is_not_repeated_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"TASKQ_SECRET": "hunter2"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("secrets", [5, (32,), [None]])
def test_secrets_of_another_type_are_refused(tmp_path: Path, secrets: object) -> None:
    with pytest.raises(ConfigError, match="secrets"):
        load(tmp_path, secrets=secrets)


def test_a_working_directory_that_is_gone_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="deleted"):
        load_settings(environ={})


def test_settings_are_replaced_as_if_they_had_been_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = with_overrides(load(tmp_path), broker="log", directory_mode="group", concurrency=None)

    assert (settings.broker, settings.directory_mode) == ((tmp_path / "log").as_uri(), "group")
    assert settings.concurrency == 16
    with pytest.raises(ConfigError, match="concurrency"):
        with_overrides(settings, concurrency="many")


def test_settings_go_to_another_process_as_plain_values(tmp_path: Path) -> None:
    given = {"feed": {"partitions": 3, "retention_ms": "3d"}, "posts": 5, "dull": {"segment_ms": 1000}}
    settings = load_settings(
        cwd=tmp_path, environ={"TASKQ_SECRET": "a" * 16 + "," + "b" * 16}, broker="log", topics=given, concurrency=3
    )
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(plain_settings(settings)))
    assert with_overrides(load_settings(cwd="/", environ={}), **plain) == settings


def test_durability_has_three_forms() -> None:
    assert Durability.parse("os") == Durability("os")
    assert Durability.parse("fsync") == Durability("fsync")
    assert Durability.parse("interval:250") == Durability("interval", 250)


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "x" * 240])
def test_names_that_kafka_allows_are_allowed(name: str) -> None:
    assert check_topic(name) == check_group(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "\u00e9", "x" * 250, None, 1])
def test_names_that_kafka_refuses_are_refused(name: object) -> None:
    with pytest.raises(ConfigError, match="topic"):
        check_topic(name)
    with pytest.raises(ConfigError, match="group"):
        check_group(name)


def test_suggestions_are_the_near_names_or_all() -> None:
    assert did_you_mean("delayy", ["delay", "map"]) == "; did you mean delay?"
    assert did_you_mean("zzz", ["map", "delay"]) == "; there are: delay, map"
    assert did_you_mean("zzz", []) == ""
