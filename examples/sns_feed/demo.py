"""The story of taskq in one command: `python -m examples.sns_feed.demo [--follows FILE] [--once]`.

Starts the site, lets the most followed user post twice, inside the request and with taskq, shows both times and the
backlog going back to zero, checks every feed, and stays up until Ctrl-C. Nothing is left behind, but on a broker that
TASKQ_BROKER names.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from examples.sns_feed import store
from examples.sns_feed.graph import GraphError
from examples.sns_feed.local import Posted, Site, SiteError
from examples.sns_feed.seed import load_graph, seed
from examples.sns_feed.tasks import CHUNK
from examples.sns_feed.web import PORT_DEFAULT
from taskq.errors import TaskqError

DRAIN_S = 120.0
BAR_WIDTH = 40


def say(text: str = "") -> None:
    print(text, flush=True)


def tell(heading: str, text: str) -> None:
    say(f"  {heading:<20}{text}")


def tell_times(author: store.User, inline: Posted, queued: Posted) -> None:
    tell(
        "inside the request", f"{1000 * inline.seconds:8,.1f} ms   {author.followers:,} INSERTs while the person waits"
    )
    tell("with taskq", f"{1000 * queued.seconds:8,.1f} ms   one invocation; workers do the INSERTs")
    tell("ratio", f"{inline.seconds / queued.seconds:8,.0f} times sooner")


def watch_drain(site: Site, post_id: int, highest: int) -> None:
    """Print backlog and filled feeds as they change, until nothing is left. Raises SiteError if that takes too long."""
    started = time.monotonic()
    shown = (-1, -1)

    def drained() -> bool:
        nonlocal shown
        with site.database.reading() as db:
            now = (site.backlog.read(), store.delivery(db, post_id).rows)
        if now != shown:
            shown = now
            bar = "█" * min(round(BAR_WIDTH * now[0] / highest), BAR_WIDTH)
            say(f"  {time.monotonic() - started:6.2f} s  {now[1]:7,} feeds   backlog {now[0]:6,}  {bar}")
        return now[0] == 0 and not site.wrong_rows(post_id)

    site.wait(drained, DRAIN_S, "empty backlog with every feed filled")


def tell_delivery(site: Site, queued: Posted) -> None:
    with site.database.reading() as db:
        post, delivery = store.find_post(db, queued.post_id), store.delivery(db, queued.post_id)
    assert post is not None
    assert delivery.last_at_ms is not None
    seconds = (delivery.last_at_ms - post.created_at_ms) / 1000
    say(f"\nIn {delivery.rows:,} of {post.author.followers:,} feeds, exactly once, the last after {seconds:.2f} s.")


def tell_addresses(site: Site) -> None:
    with site.database.reading() as db:
        author = store.top_users(db, 1)[0]
        follower = store.followers(db, author.id, 1)[0]
    say("\nOpen these side by side:\n")
    tell("post as", f"{site.url}/users/{author.id}   {author.name}")
    tell("read as", f"{site.url}/users/{follower.id}   {follower.name}, a follower")
    tell("watch", f"{site.url}/backlog")


def run(site: Site) -> None:
    """Both posts, the drain, the check. Raises SiteError if anything is off."""
    with site.database.reading() as db:
        author, quiet = store.top_users(db, 1)[0], store.least_followed(db)
    # The first request of a process opens what all others use, so it is not one that we measure.
    site.post(quiet.id, "Is anybody listening?", "queued")
    say(f"\n{author.name} posts twice to {author.followers:,} followers:\n")
    inline = site.post(author.id, "Hello from inside the request!", "inline")
    queued = site.post(author.id, "Hello by way of taskq!", "queued")
    highest = -(-author.followers // CHUNK)
    tell_times(author, inline, queued)
    say(f"\nThe backlog, in invocations for {CHUNK} followers each:\n")
    watch_drain(site, queued.post_id, highest)
    if wrong := site.wrong_rows(inline.post_id):
        raise SiteError(f"the post inside the request: {wrong}")
    tell_delivery(site, queued)


def choose_port(wanted: int | None) -> int:
    """The wanted port; without a wish the usual one, or 0, any, if it is taken. Raises SiteError."""
    try:
        socket.create_server(("127.0.0.1", PORT_DEFAULT if wanted is None else wanted)).close()
    except OSError as error:
        if wanted is not None:
            raise SiteError(f"port {wanted}: {os.strerror(error.errno or 0)}; --port 0 takes any free one") from error
        return 0
    return PORT_DEFAULT if wanted is None else wanted


def demo(folder: Path, arguments: argparse.Namespace) -> None:
    broker = os.environ.get("TASKQ_BROKER")
    site = Site(folder, workers=arguments.workers, port=choose_port(arguments.port), show=say, broker=broker)
    started = time.monotonic()
    graph = load_graph(arguments.follows)
    seed(site.database, graph)
    seconds = time.monotonic() - started
    say(f"{len(graph.names):,} people, {len(graph.follows):,} follows, seeded in {seconds:.1f} s into {folder}\n")
    with site:
        run(site)
        if not arguments.once:
            tell_addresses(site)
            say("\nUp until Ctrl-C.\n")
            site.watch()


def end(signum: int, _: FrameType | None) -> None:
    """Turn a signal into an exception, so that what was started is stopped."""
    raise KeyboardInterrupt(signum)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.sns_feed.demo", description=__doc__)
    parser.add_argument(
        "--follows", type=Path, metavar="FILE", help="CSV of mutual pairs, id_1,id_2 (default: generated)"
    )
    parser.add_argument("--once", action="store_true", help="end after the numbers; exit code 1 if anything is off")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="worker processes (default: %(default)s)")
    parser.add_argument("--port", type=int, help=f"of the web server (default: {PORT_DEFAULT} if it is free)")
    arguments = parser.parse_args()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, end)
    try:
        with tempfile.TemporaryDirectory(prefix="taskq-demo-") as folder:
            demo(Path(folder), arguments)
    except KeyboardInterrupt:
        return 0 if not arguments.once else 130
    except (SiteError, GraphError, TaskqError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
