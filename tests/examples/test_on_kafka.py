"""The example on Kafka, by one variable: a post is in every follower's feed exactly once."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.sns_feed.local import Site
from examples.sns_feed.seed import seed
from tests.examples.graphs import star
from tests.examples.test_demo import demo
from tests.kafka.cluster import Cluster

FOLLOWERS = 2_000
DRAIN_S = 60


@pytest.fixture
def url(kafka: Cluster) -> str:
    kafka.reset()
    return f"kafka://{kafka.bootstrap}"


@pytest.mark.timeout(120)
def test_a_post_is_in_every_feed_exactly_once(tmp_path: Path, url: str):
    site = Site(tmp_path, workers=2, broker=url)
    seed(site.database, star(FOLLOWERS))
    with site:
        queued = [site.post(1, f"by way of Kafka, {number}", "queued") for number in range(3)]
        for post in queued:
            site.wait_until_delivered(post.post_id, DRAIN_S)
            assert not site.wrong_rows(post.post_id)
    assert not (tmp_path / "log").exists()


@pytest.mark.timeout(120)
def test_the_demo_runs_on_the_broker_that_the_variable_names(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TASKQ_BROKER", url)
    edges = tmp_path / "follows.csv"
    edges.write_text("id_1,id_2\n" + "".join(f"7,{other}\n" for other in range(100, 400)))
    with demo(tmp_path, "--once", "--follows", str(edges), "--port", "0") as process:
        output, _ = process.communicate(timeout=100)
    assert f"broker       {url}" in output
    assert "In 300 of 300 feeds, exactly once" in output
