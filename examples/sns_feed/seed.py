"""Fill a new database with people: `python -m examples.sns_feed.seed [--follows FILE]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.sns_feed.database import DATABASE_VARIABLE, INDEXES, Database, database_path
from examples.sns_feed.graph import Graph, GraphError, power_law, read_follows


def load_graph(follows: Path | None) -> Graph:
    """The graph in an edge list, or without one, a generated one. Raises GraphError."""
    return power_law() if follows is None else read_follows(follows)


def seed(database: Database, graph: Graph) -> None:
    """Make the database and fill it, in one transaction. Raises FileExistsError if the file is there."""
    database.create()
    with database.writing() as connection:
        connection.executemany("INSERT INTO users (id, name) VALUES (?, ?)", graph.names.items())
        connection.executemany("INSERT INTO follows (author_id, follower_id) VALUES (?, ?)", graph.follows)
        connection.execute(
            "UPDATE users SET followers = (SELECT count(*) FROM follows WHERE follows.author_id = users.id)"
        )
        for index in INDEXES:
            connection.execute(index)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.sns_feed.seed", description=__doc__)
    parser.add_argument(
        "--follows", type=Path, metavar="FILE", help="CSV of mutual pairs, id_1,id_2 (default: generated)"
    )
    arguments = parser.parse_args()
    database = Database(database_path())
    try:
        graph = load_graph(arguments.follows)
        seed(database, graph)
    except GraphError as error:
        print(f"seed: {error}", file=sys.stderr)
        return 1
    except FileExistsError:
        print(f"seed: {database.path} is there already; delete it or set {DATABASE_VARIABLE}", file=sys.stderr)
        return 1
    finally:
        database.close()
    print(f"{database.path}: {len(graph.names):,} people, {len(graph.follows):,} follows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
