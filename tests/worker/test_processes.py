"""`executor="process"`: in a child process runs what would have run in the worker, and ends as it would have there."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from taskq import TaskQ
from taskq.errors import ConfigError
from taskq.worker import Worker, WorkerOptions
from taskq.worker.executors import children, processes
from tests.processes import Bench, bench, is_gone, wait_until
from tests.working import wait_finished, working

MODULE = "tests.apps.processes"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("TEST_AUDIT", str(tmp_path / "audit"))
    with bench(tmp_path, MODULE) as made:
        yield made


def pids(here: Bench) -> set[str]:
    return {line.split()[1] for line in here.audited()}


def test_arguments_arrive_as_their_types(here: Bench) -> None:
    here.task("take").delay(UUID(int=7), {"b", "a"}, 1.5, 2.5, flag=True)
    with working(here.app, group="feed") as worker:
        wait_finished(worker)
    assert here.audited() == [f"{UUID(int=7)} ['a', 'b'] (1.5, 2.5) True"]


def test_current_tells_a_child_what_it_would_tell_in_the_worker(here: Bench) -> None:
    task = here.task("tell_current")
    handle = task.options(headers={"trace": "x"}, key="k", id="mine").delay()
    with working(here.app, group="feed") as worker:
        wait_finished(worker)
    who, more = here.audited()
    assert who.startswith(f"{task.name} feed ('feed', ")
    assert who.endswith(f", 0) {handle.id} 1 1")
    assert more == "{'trace': 'x'} True"


def test_async_tasks_run_on_the_workers_kind_of_loop(here: Bench, backend: str) -> None:
    handles = [here.task("tell_loop").delay(number) for number in range(5)]
    with working(here.app, backend, group="feed") as worker:
        wait_finished(worker)
    assert sorted(here.audited()) == [f"{number} {backend} {handle.id}" for number, handle in enumerate(handles)]


def test_a_child_publishes_to_the_workers_broker(here: Bench) -> None:
    """Which nothing but `configure` in the worker has named."""
    here.task("publish").delay(7)
    with working(here.app, group="feed") as worker:
        here.wait_for_lines(1)
        wait_finished(worker)
    assert here.audited()[0].startswith("7 ")


def test_a_child_can_not_publish_to_the_workers_memory(here: Bench) -> None:
    here.app.configure(broker="memory:")
    here.task("publish").delay(7)
    with working(here.app, group="feed") as worker:
        wait_finished(worker)
        dead = worker.metrics_snapshot()["taskq_dead_letters"]
    assert dead == [(("feed",), [1.0])]
    assert here.audited() == []


def test_as_many_run_at_once_as_the_concurrency_says_in_as_many_children(here: Bench) -> None:
    here.task("stay").map([(f"gate{number}",) for number in range(6)])
    with working(here.app, group="feed", concurrency=2) as worker:
        here.wait_for_lines(2)
        assert len(worker._running()) == 2
        assert len(worker._processes.running()) == 2
        for number in range(6):
            (here.folder / f"gate{number}").touch()
        wait_finished(worker)
    running, most = 0, 0
    for line in here.audited():
        running += 1 if line.startswith("start") else -1
        most = max(most, running)
    assert most == 2
    assert len({line.split()[2] for line in here.audited()}) == 2, "they are used again"


def test_nothing_is_started_before_it_is_needed(here: Bench) -> None:
    with working(here.app, group="feed", concurrency=8) as worker:
        here.task("in_the_worker").delay(1)
        here.wait_for_lines(1)
        assert worker._processes._runners == []
        for number in range(10):
            here.task("note").delay(number)
            here.wait_for_lines(2 + number)
        wait_finished(worker)
        assert len(pids(here)) <= 3, "one after the other they need one, or few where they overlap"
        assert len(worker._processes._runners) <= 3


def test_few_children_are_started_at_once_and_who_waits_takes_what_comes_free(
    here: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STARTING_MAX", 1)
    starting, most = [0], [0]
    start = processes.ProcessPool._try_start

    def count(pool: processes.ProcessPool, run: Any) -> Any:
        starting[0] += 1
        most[0] = max(most[0], starting[0])
        try:
            return start(pool, run)
        finally:
            starting[0] -= 1

    monkeypatch.setattr(processes.ProcessPool, "_try_start", count)
    here.task("note").map([(number,) for number in range(100)])
    with working(here.app, group="feed", concurrency=16) as worker:
        here.wait_for_lines(100)
        wait_finished(worker)
        assert most == [1]
        here.task("stay").map([("gate",)] * 16)
        here.wait_for_lines(116)
        (here.folder / "gate").touch()
        wait_finished(worker)
    assert len({line.split()[1] for line in here.audited()[:100]}) <= 4


def test_idle_children_are_ended_and_others_started(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "IDLE_S", 0.05)
    monkeypatch.setattr(processes, "LOOK_S", 0.01)
    with working(here.app, group="feed") as worker:
        here.task("note").delay(1)
        here.wait_for_lines(1)
        (first,) = pids(here)
        wait_until(lambda: is_gone(int(first)), "it is ended")
        wait_until(lambda: worker._pool._looker is None, "nobody looks any more")
        here.task("note").delay(2)
        here.wait_for_lines(2)
    assert len(pids(here)) == 2


@pytest.mark.parametrize("looked_at_every_s", [0.01, 1000.0])
def test_a_child_that_dies_while_idle_is_replaced(
    here: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, looked_at_every_s: float
) -> None:
    monkeypatch.setattr(processes, "LOOK_S", looked_at_every_s)
    with working(here.app, group="feed") as worker:
        here.task("note").delay(1)
        here.wait_for_lines(1)
        wait_until(lambda: worker._pool._idle, "it is idle")
        worker._pool._idle[0].kill()
        here.task("note").delay(2)
        here.wait_for_lines(2)
        wait_finished(worker)
        wait_until(lambda: "while it had nothing to do" in caplog.text, "it is told")
    assert "was killed by SIGKILL" in caplog.text
    assert len(pids(here)) == 2
    assert here.dead_letters("feed") == []


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("/nowhere/python",), "No such file or directory"),
        ((sys.executable, "-c", "import sys; sys.exit(3)"), "it ended with exit code 3 before it was ready"),
        ((sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"), "it was killed by SIGSEGV before it was ready"),
    ],
)
def test_what_needs_a_child_waits_until_one_can_be_started(
    here: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, command: tuple[str, ...], why: str
) -> None:
    monkeypatch.setattr(children, "COMMAND", command)
    monkeypatch.setattr(processes, "PAUSE_S_MAX", 0.1)
    here.task("note").delay(1)
    here.task("in_the_worker").delay(2)
    with working(here.app, group="feed") as worker:
        here.wait_for_lines(1)
        wait_until(
            lambda: any("no child process can be started" in one for one in worker.ready().reasons), "it says so"
        )
        assert worker.health().ok
        assert why in caplog.text
        monkeypatch.undo()
        monkeypatch.setenv("TEST_AUDIT", str(here.audit))
        here.wait_for_lines(2)
        wait_finished(worker)
        assert worker.ready().ok
    assert here.dead_letters("feed") == []


def run_until_it_says_why(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(now: float) -> None:
        if worker._pool.error:
            worker.drain()

    monkeypatch.setattr(worker, "drain_timeout_s", 0.0)
    monkeypatch.setattr(worker._poller, "on_tick", [look])
    assert worker.run() == 0


def test_a_worker_ends_while_no_child_can_be_started(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "COMMAND", ("/nowhere/python",))
    here.task("note").delay(1)
    worker = Worker(here.app, WorkerOptions("feed", concurrency=1))
    run_until_it_says_why(worker, monkeypatch)
    assert here.unfinished("feed") == 1


def test_a_module_that_can_not_be_imported_is_told_with_its_traceback(
    here: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(here.app, WorkerOptions("feed", modules=("tests.apps.nowhere",)))
    here.task("note").delay(1)
    run_until_it_says_why(worker, monkeypatch)
    assert "ModuleNotFoundError: No module named 'tests.apps.nowhere'" in caplog.text


def test_a_program_that_starts_a_worker_whenever_it_is_imported_does_so_once(tmp_path: Path) -> None:
    program = tmp_path / "careless.py"
    program.write_text(
        "from taskq import TaskQ\n"
        "from taskq.worker import Worker, WorkerOptions\n"
        "app = TaskQ('careless', broker='log')\n"
        "@app.task(executor='process')\n"
        "def nothing() -> None: ...\n"
        "nothing.delay()\n"
        "Worker(app, WorkerOptions('default')).run()\n"
    )
    with subprocess.Popen([sys.executable, program], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = iter(process.stderr.readline, "")
            assert any("put that below `if __name__ == '__main__':`" in line for line in said)
        finally:
            process.kill()


def test_children_log_as_the_worker_does(here: Bench) -> None:
    here.task("log").delay("hello")
    worker = here.start_worker("feed")
    worker.wait_for(r"\d+ INFO tests.apps.processes.log: tests.apps.processes.log\[.*\] says hello")
    assert worker.stop() == 0
    assert "not this" not in worker.log


def test_a_task_that_nobody_can_import_is_refused(tmp_path: Path) -> None:
    with TaskQ("test", broker=str(tmp_path)) as app:

        @app.task(executor="process")
        def local() -> None: ...

        with pytest.raises(ConfigError, match=r"local can't run in a child process.*top level"):
            Worker(app, WorkerOptions("default"))


def test_a_suspect_that_nobody_can_import_runs_in_the_worker(tmp_path: Path) -> None:
    with TaskQ("test", broker=str(tmp_path)) as app:

        @app.task
        def local() -> None: ...

        (job,) = Worker(app, WorkerOptions("default"))._jobs
        assert job.quarantined is job.careful


@pytest.mark.skipif(sys.platform != "linux", reason="there is no OOM killer to be told")
def test_the_child_of_a_suspect_is_the_first_to_go_for_want_of_memory(here: Bench) -> None:
    own = Path("/proc/self/oom_score_adj").read_text().strip()
    with working(here.app, group="feed", concurrency=1) as worker:
        (job,) = [job for job in worker._jobs if job.task is here.task("tell_oom_score")]
        for count, run in enumerate((worker._pool.run, worker._pool.run_suspect, worker._pool.run), 1):
            job.run = run
            job.task.delay()
            here.wait_for_lines(count)
        wait_finished(worker)
    assert [line.split()[1] for line in here.audited()] == [own, "1000", own]
    assert len({line.split()[0] for line in here.audited()}) == 1


# --- how it fails


def letters(here: Bench) -> dict[str, dict[str, str]]:
    return {letter["message"]: letter for letter in here.dead_letters("feed")}


def test_errors_are_told_as_if_they_had_been_raised_in_the_worker(here: Bench) -> None:
    for kind in ("mild", "grave", "other", "odd", "reject", "exit"):
        here.task("fail").delay(kind)
    with working(here.app, group="feed") as worker:
        wait_finished(worker)
        dead = letters(here)
    assert Counter(line.split()[0] for line in here.audited()) == {
        "mild": 2, "grave": 1, "other": 1, "odd": 1, "reject": 1, "exit": 1,
    }, "the policy is for one of them"  # fmt: skip
    assert {message: (letter["reason"], letter["type"]) for message, letter in dead.items()} == {
        "it is mild": ("failed", f"{MODULE}.Mild"),
        "it is grave": ("failed", f"{MODULE}.Grave"),
        "it is other": ("failed", "ValueError"),
        "half a pair: \\udc80": ("failed", f"{MODULE}.Odd"),
        "no": ("rejected", "Reject"),
        "7": ("failed", "SystemExit"),
    }
    assert 'processes.py", line ' in dead["it is grave"]["traceback"]
    assert dead["it is grave"]["traceback"].rstrip().endswith(f"{MODULE}.Grave: it is grave")
    assert dead["no"]["traceback"] == ""


def test_wrong_arguments_are_told_and_not_tried_again(here: Bench) -> None:
    value = b'{"task": "tests.apps.processes.fail", "kwargs": {"nope": 1}}'
    here.app.broker.producer().send("feed", value, None)
    with working(here.app, group="feed") as worker:
        wait_finished(worker)
        (letter,) = here.dead_letters("feed")
    assert (letter["reason"], letter["type"]) == ("arguments", "taskq.errors.ArgumentsError")


def test_later_is_later(here: Bench) -> None:
    here.task("later").delay()
    with working(here.app, group="feed") as worker:
        here.wait_for_lines(3)
        wait_finished(worker)
    assert here.audited() == ["later 1", "later 2", "later 3"]
    assert here.dead_letters("feed") == []


def test_a_task_that_its_module_no_longer_defines_is_a_dead_letter(
    here: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    @here.app.task(topic="feed", group="feed", executor="process", name="made.later")
    def made_later() -> None: ...

    made_later.fn.__qualname__ = "made_later"
    made_later.delay()
    with working(here.app, group="feed") as worker:
        wait_finished(worker)
        (letter,) = here.dead_letters("feed")
    assert letter["type"] == "taskq.errors.TaskNotFound"
    assert "does not define the task 'made.later'" in letter["message"]
