"""Who follows whom: read from an edge list, or generated."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from attrs import frozen

USERS_DEFAULT = 10_000
FOLLOWS_PER_USER = 20
"""How many draws each generated user makes; a few fall on the same author twice."""

EXPONENT = 0.8
"""The n-th most popular author is drawn in proportion to n ** -EXPONENT: a few by thousands, most by a handful."""

FIRST_NAMES = (
    "Ada Amara Anouk Arlo Bela Bruno Cleo Dario Edda Eero Emil Esme Farah Finn Freya Goro Hana Hugo Ida Ines Ivo "
    "Jiro Juno Kaia Kofi Lars Leila Lina Luca Maya Milo Mira Nadia Nils Noor Odin Ola Omar Otis Petra Quinn Rafa "
    "Rhea Rosa Sana Sami Selma Tariq Thea Timo Uma Vera Vito Wanda Wim Xenia Yara Yuki Zane Zora"
).split()
LAST_NAMES = (
    "Abara Adler Ando Barros Bauer Berg Blom Castro Chen Costa Dahl Dang Diaz Doyle Egede Falk Fujita Garza "
    "Gruber Haddad Hahn Holm Ibarra Ito Jansen Kang Katz Keita Kimura Koch Lemaire Lindt Lopes Maki Meyer Mori "
    "Nakata Novak Oduya Okafor Ortiz Park Petit Rao Reyes Rossi Sato Silva Sorel Strand Suri Tanaka Toure Ueda "
    "Vance Vidal Weiss Yilmaz Young Zeman"
).split()


class GraphError(Exception):
    """An edge list can't be read. The message says which file, which line and why."""


@frozen
class Graph:
    """Names by user id, and (author, follower) pairs: sorted, no repeats, nobody following themselves."""

    names: dict[int, str]
    follows: list[tuple[int, int]]


def read_follows(path: Path) -> Graph:
    """Read a CSV of mutual pairs (`id_1,id_2`): each of the two follows the other. Raises GraphError."""
    follows: set[tuple[int, int]] = set()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for a, b in _pairs(path, csv.reader(file)):
                if a != b:
                    follows.add((a, b))
                    follows.add((b, a))
    except OSError as error:
        raise GraphError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise GraphError(f"{path}: {error}") from error
    if not follows:
        raise GraphError(f"{path}: no pairs in it")
    users = sorted({author for author, _ in follows})
    return Graph({user: f"Developer {user}" for user in users}, sorted(follows))


def _pairs(path: Path, rows: Iterator[list[str]]) -> Iterator[tuple[int, int]]:
    for number, row in enumerate(rows, start=1):
        if len(row) == 2 and row[0].isdecimal() and row[1].isdecimal():
            yield int(row[0]), int(row[1])
        elif row and number > 1:  # the first line may be a heading, and a line may be empty
            raise GraphError(f"{path}, line {number}: expected two user ids, got {','.join(row)[:80]!r}")


def power_law(users: int = USERS_DEFAULT, seed: int = 1) -> Graph:
    """Make a graph in which user 1 is followed most. The same arguments give the same graph, everywhere."""
    choose = random.Random(seed)
    authors = range(1, users + 1)
    weights = list(accumulate(author**-EXPONENT for author in authors))
    follows = {
        (author, follower)
        for follower in authors
        for author in choose.choices(authors, cum_weights=weights, k=FOLLOWS_PER_USER)
        if author != follower
    }
    names = {user: f"{choose.choice(FIRST_NAMES)} {choose.choice(LAST_NAMES)}" for user in authors}
    return Graph(names, sorted(follows))
