"""A supervisor of fake workers: `run_supervisor.py N BEHAVIOUR...`. Prints the address of its page when it serves.

For each line that it reads, it prints which sources its workers have, and starts them again for that reason.
"""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path

from taskq.worker.http import serve
from taskq.worker.supervisor import Supervisor

FAKE_WORKER = str(Path(__file__).with_name("fake_worker.py"))


def main(processes: int, behaviour: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    drain_timeout_s = -4.5 if "impatient" in behaviour else 30.0
    supervisor = Supervisor(
        lambda number, fd: [sys.executable, FAKE_WORKER, str(fd), *behaviour],
        processes,
        drain_timeout_s=drain_timeout_s,
        awaits_change="awaits-change" in behaviour,
    )

    def restart_for_each_line() -> None:
        for line in sys.stdin:
            print(sorted(supervisor.sources()), flush=True)
            supervisor.restart(line.strip())

    threading.Thread(target=restart_for_each_line, daemon=True).start()
    page = serve("127.0.0.1", 0, supervisor.metrics_snapshot, supervisor.health, supervisor.ready)
    print(page.url, flush=True)
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
