"""The tables, in Markdown: what is printed at the end of a run and what `--write-readme` puts into README.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.results import Results
from benchmarks.targets import targets

README = Path(__file__).with_name("README.md")
_BEGIN = "<!-- tables: begin (written by `python -m benchmarks --write-readme`) -->"
_END = "<!-- tables: end -->"

Format = Callable[[float], str]


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _us_as_ms(value: float) -> str:
    return f"{value / 1e3:.2f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _percent_fine(value: float) -> str:
    return f"{value:.2%}"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.0f}"


_PUBLISH: tuple[tuple[str, str, str, Format], ...] = (
    ("one by one, /s", "drain_def_1", "publish_rate", _count),
    ("p50, us", "drain_def_1", "publish_p50_us", _count),
    ("p99, us", "drain_def_1", "publish_p99_us", _count),
    ("in bulk, /s", "drain_bulk_1", "publish_rate", _count),
)
_DRAIN: tuple[tuple[str, str, str, Format], ...] = (
    ("`def`, 1 process", "drain_def_1", "rate", _count),
    ("`def`, 2 processes", "drain_def_2", "rate", _count),
    ("`async def`, 1 process", "drain_async_1", "rate", _count),
    ("`async def`, 2 processes", "drain_async_2", "rate", _count),
    ("`def`, 1 process, published in bulk", "drain_bulk_1", "rate", _count),
)
_WAIT: tuple[tuple[str, str, str, Format], ...] = (
    ("publish to start p50, ms", "latency", "p50_us", _us_as_ms),
    ("p99, ms", "latency", "p99_us", _us_as_ms),
    ("idle worker: CPU, of a core", "idle", "cpu_share", _percent_fine),
    ("PSS, MB", "idle", "pss", _megabytes),
    ("processes", "idle", "processes", _count),
    ("10 ms sleeps on 32 threads, of ideal", "io_threads", "share", _percent),
    ("200 `async def`, of ideal", "io_async", "share", _percent),
)


def tables(results: Results) -> str:
    parts = [
        "### Publishing",
        _peer_table(results, _PUBLISH, ratio_of=("drain_def_1", "publish_rate")),
        "### Draining no-ops, messages a second",
        _peer_table(results, _DRAIN, ratio_of=("drain_def_1", "rate")),
        "### Waiting",
        _peer_table(results, _WAIT),
        "### What taskq is to reach",
        _targets_table(results),
        "### With what",
        table(("", "settings", "durability"), [(p.title, p.settings, p.durability) for p in results.peers.values()]),
        "\n".join(f"- {name}: {value}" for name, value in results.machine.items()),
        *_troubles(results),
    ]
    return "\n\n".join(parts)


def _peer_table(
    results: Results, columns: Sequence[tuple[str, str, str, Format]], ratio_of: tuple[str, str] | None = None
) -> str:
    """One row for each peer, without columns that nobody has. `ratio_of` adds how many times faster taskq is."""
    columns = [c for c in columns if any(results.median(c[1], name, c[2]) is not None for name in results.peers)]
    if not columns:
        return "Not measured."
    header = ["", *(title for title, *_ in columns), *(["taskq is"] if ratio_of else [])]
    rows = []
    for name, peer in results.peers.items():
        row = [peer.title]
        for _, measure, number, form in columns:
            value = results.median(measure, name, number)
            row.append("" if value is None else form(value))
        if ratio_of:
            ours, theirs = (
                results.median(ratio_of[0], "taskq", ratio_of[1]),
                results.median(ratio_of[0], name, ratio_of[1]),
            )
            row.append(f"{ours / theirs:.1f}x" if ours and theirs and name != "taskq" else "")
        rows.append(row)
    return table(header, rows)


def _targets_table(results: Results) -> str:
    rows = []
    for target in targets(results):
        met = "" if target.measured is None else "yes" if target.met else "**no**"
        rows.append((target.what, target.wanted, target.told, met))
    return table(("", "wanted", "measured", "met"), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _troubles(results: Results) -> Iterable[str]:
    """What did not run, or not to the end."""
    lines = [f"- {name}: skipped, {reason}" for name, reason in results.skipped.items()]
    for measure, by_peer in results.failures.items():
        lines += [f"- {peer}, {measure}: {reason}" for peer, reasons in by_peer.items() for reason in reasons]
    for measure, runs_by_peer in results.runs.items():
        for peer, runs in runs_by_peer.items():
            missing = [int(run["missing"]) for run in runs if "missing" in run]
            if missing:
                lines.append(f"- {peer}, {measure}: messages that had not run when the time was up: {missing}")
    if lines:
        yield "### What did not go as planned"
        yield "\n".join(lines)


def write_readme(text: str, begin: str = _BEGIN, end: str = _END) -> None:
    """Put the tables between their markers. Raises ValueError if README.md has no markers."""
    readme = README.read_text()
    before, after = readme.index(begin) + len(begin), readme.index(end)
    README.write_text(f"{readme[:before]}\n\n{text}\n\n{readme[after:]}")
