"""What runs in a publisher process of its own: `python -m benchmarks.role PEER KIND TASK COUNT SECONDS`; prints JSON.

Kinds: `publish` one by one, `threads` the same from sixteen threads, `bulk` with the peer's bulk call, `latency` one at
a time with pauses, against a worker that runs already.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, perf_counter_ns, sleep

from benchmarks import peers, work
from benchmarks.peer import Peer, PublishPlan

THREADS = 16
_PAUSES_S = (0.005, 0.020)
_LAST_STAMPS_TIMEOUT_S = 10.0


def percentile(values: Sequence[int], share: float) -> float:
    """The value in ns that `share` of `values` do not exceed, in us."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] / 1e3


def _publish(peer: Peer, task: str, count: int, seconds: float) -> dict[str, float]:
    published = peer.publish(PublishPlan(task, count, seconds))
    calls = [ended - began for began, ended in zip(published.began, published.ended, strict=True)]
    elapsed_s = (published.ended[-1] - published.began[0]) / 1e9
    return {
        "count": len(calls) + 1,
        "rate": len(calls) / elapsed_s,
        "p50_us": percentile(calls, 0.5),
        "p99_us": percentile(calls, 0.99),
    }


def _bulk(peer: Peer, task: str, count: int, seconds: float) -> dict[str, float]:
    assert peer.publish_many is not None
    began = perf_counter_ns()
    peer.publish_many(task, count)
    return {"count": count, "rate": count / ((perf_counter_ns() - began) / 1e9)}


def _threads(peer: Peer, task: str, count: int, seconds: float) -> dict[str, float]:
    assert peer.sender is not None
    indices = iter(range(1, count))  # next() of it is atomic
    with peer.sender(task) as send:
        send(0)
        began = perf_counter_ns()

        def run() -> int:
            sent = 0
            for index in indices:
                send(index)
                sent += 1
                if perf_counter_ns() - began > seconds * 1e9:
                    break
            return sent

        with ThreadPoolExecutor(THREADS) as pool:
            sent = sum([future.result() for future in [pool.submit(run) for _ in range(THREADS)]])
        return {"count": sent + 1, "rate": sent / ((perf_counter_ns() - began) / 1e9)}


def _latency(peer: Peer, task: str, count: int, seconds: float) -> dict[str, float]:
    """Publish to start, in us. Waits for the worker to have run the warm-up message first, and then for quiet."""

    def ready() -> None:
        _wait_done(1, seconds)
        sleep(1)

    published = peer.publish(PublishPlan(task, count, seconds, _PAUSES_S, ready))
    _wait_done(count, _LAST_STAMPS_TIMEOUT_S)
    waits = [work.board.stamps[index] - began for index, began in enumerate(published.began, 1)]
    return {"count": count, "p50_us": percentile(waits, 0.5), "p99_us": percentile(waits, 0.99)}


def _wait_done(count: int, seconds: float) -> None:
    deadline = monotonic() + seconds
    while work.board.first_unset(0, count) < count:
        if monotonic() > deadline:
            raise TimeoutError(f"{work.board.done(count)} of {count} messages had run after {seconds:.0f} s")
        sleep(0.05)


KINDS = {"publish": _publish, "threads": _threads, "bulk": _bulk, "latency": _latency}


def main(arguments: Sequence[str]) -> None:
    name, kind, task, count, seconds = arguments
    measured = KINDS[kind](peers.load(name), task, int(count), float(seconds))
    print(json.dumps(measured))


if __name__ == "__main__":
    main(sys.argv[1:])
