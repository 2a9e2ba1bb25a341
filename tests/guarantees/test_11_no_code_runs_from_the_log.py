"""Guarantee 11: cloudpickle is opt-in, and then only with signed messages; what is unsigned or wrongly signed is a dead
letter, and is never unpickled."""

from __future__ import annotations

import os
from pathlib import Path

import cloudpickle  # type: ignore[import-untyped]
import msgspec
import pytest

from tests.processes import bench, wait_until

OURS, OLD, FOREIGN = "our key" * 5, "an older key of ours" * 2, "somebody else's key" * 2


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    ("signed_with", "worker_has", "runs"),
    [(OURS, OURS, True), (OLD, f"{OURS},{OLD}", True), (FOREIGN, OURS, False)],
)
def test_a_pickled_call_runs_only_if_signed_with_a_key_of_ours(
    tmp_path: Path, signed_with: str, worker_has: str, runs: bool
) -> None:
    with bench(tmp_path, "tests.apps.pickled") as here:
        here.app.configure(secrets=signed_with)
        here.task("call").delay(lambda: "called")
        here.environment["TASKQ_SECRET"] = worker_has
        worker = here.start_worker("pickled")
        if runs:
            assert here.wait_for_lines(1) == ["called"]
        else:
            wait_until(lambda: here.dead_letters("pickled"), "a dead letter")
            assert here.dead_letters("pickled")[0]["reason"] == "signature"
            assert here.audited() == []
        wait_until(lambda: here.unfinished("pickled") == 0, "it is finished")
        assert worker.stop() == 0


@pytest.mark.parametrize("signature", [None, b"", b"\x00" * 32, b"\x00" * 40])
def test_an_unsigned_or_wrongly_signed_pickle_is_never_loaded(tmp_path: Path, signature: bytes | None) -> None:
    trap = tmp_path / "unpickled"
    with bench(tmp_path, "tests.apps.pickled") as here:
        here.app.configure(secrets=OURS)
        value = {
            "task": "tests.apps.pickled.call",
            "args": msgspec.msgpack.encode(cloudpickle.dumps(((Bomb(str(trap)),), {}))),
            "signature": signature,
        }
        raw = {**value, "args": cloudpickle.dumps(((Bomb(str(trap)),), {}))}
        for args in (value, raw):
            here.app.broker.producer().send("pickled", msgspec.msgpack.encode(args))
        here.environment["TASKQ_SECRET"] = OURS
        worker = here.start_worker("pickled")
        wait_until(lambda: len(here.dead_letters("pickled")) == 2, "two dead letters")
        assert worker.stop() == 0
        assert not trap.exists()
