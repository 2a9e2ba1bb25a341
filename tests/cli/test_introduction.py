"""The first lines of a worker."""

from __future__ import annotations

import pytest

from taskq.cli.introduction import CHARACTERS_MAX, introduce, lines_of, shortened
from taskq.worker import WorkerDescription


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], ""),
        (["add"], "add"),
        (["add", "wait"], "add, wait"),
        (["x" * 200, "y"], f"{'x' * 200} and 1 more"),
        ([f"shop.tasks.task_{number:02}" for number in range(40)], None),
    ],
)
def test_a_list_is_no_longer_than_a_line(names: list[str], said: str | None):
    if said is None:
        shown = shortened(names)
        assert len(shown) <= CHARACTERS_MAX + len(" and 40 more")
        assert shown.endswith(" more")
        assert shown.startswith("shop.tasks.task_00, shop.tasks.task_01, ")
        assert shown.count("task_") + int(shown.split()[-2]) == 40
    else:
        assert shortened(names) == said


def test_all_is_aligned_under_who_it_is(capsys: pytest.CaptureFixture[str]):
    worker = WorkerDescription("1.0", "memory:", "feed", ("fan_out",), (("feed", 8), ("feed.retry", 8)), 16, "trio")
    introduce(lines_of(worker), "not served")
    assert capsys.readouterr().err.splitlines() == [
        "taskq 1.0, group feed",
        "  broker       memory:",
        "  tasks        fan_out",
        "  topics       feed (8 partitions), feed.retry (8 partitions)",
        "  concurrency  16, on trio",
        "  metrics      not served",
    ]
