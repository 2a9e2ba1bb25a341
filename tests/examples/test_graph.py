"""Edge lists are read, or refused with file and line; the generated graph is a power law, always the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from examples.sns_feed.graph import GraphError, power_law, read_follows


@pytest.fixture
def edges(tmp_path: Path) -> Path:
    return tmp_path / "follows.csv"


def test_a_mutual_pair_is_two_follows(edges: Path):
    edges.write_text("id_1,id_2\n3,1\n")
    graph = read_follows(edges)
    assert graph.follows == [(1, 3), (3, 1)]
    assert graph.names == {1: "Developer 1", 3: "Developer 3"}


def test_repeated_pairs_and_pairs_with_oneself_add_nothing(edges: Path):
    edges.write_text("1,2\n2,1\n1,2\n1,1\n\n")
    assert read_follows(edges).follows == [(1, 2), (2, 1)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("id_1,id_2\n1,2\n3\n", r"line 3: expected two user ids, got '3'"),
        ("1,2\n1,two\n", r"line 2: .*'1,two'"),
        ("1,2\n1,-2\n", r"line 2"),
        ("1,2\n1,2,3\n", r"line 2"),
        ("id_1,id_2\n", r"no pairs"),
        ("", r"no pairs"),
    ],
)
def test_what_is_not_an_edge_list_is_refused_with_file_and_line(edges: Path, content: str, told: str):
    edges.write_text(content)
    with pytest.raises(GraphError, match=told) as raised:
        read_follows(edges)
    assert str(edges) in str(raised.value)


def test_a_file_that_is_missing_or_no_text_is_refused_by_name(edges: Path):
    with pytest.raises(GraphError, match=r"follows\.csv"):
        read_follows(edges)
    edges.write_bytes(b"1,2\n\xff\xfe\n")
    with pytest.raises(GraphError, match=r"follows\.csv"):
        read_follows(edges)


def test_the_generated_graph_is_the_same_every_time():
    assert power_law(300, seed=5) == power_law(300, seed=5)
    assert power_law(300, seed=5) != power_law(300, seed=6)


def test_the_generated_graph_has_a_few_that_thousands_follow():
    graph = power_law()
    followers = sorted(Counter(author for author, _ in graph.follows).values(), reverse=True)
    assert len(graph.names) == 10_000
    assert followers[0] > 4_000
    assert followers[10] < followers[0] / 4
    assert followers[len(followers) // 2] < 20
    assert all(author != follower for author, follower in graph.follows)
    assert len(set(graph.follows)) == len(graph.follows)
