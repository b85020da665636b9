"""The tables of docs/gpu-results.md from what gpu_results.py measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Theoretical speed-up → actual ÷ theoretical, as the paper reports for VGG-16 on a GPU.
PAPER_SHARES = {3: 0.77, 4: 0.75, 5: 0.74, 10: 0.59}

Rows = Sequence[Mapping[str, Any]]
Times = Mapping[str, Mapping[str, float]]


def tables(results: Mapping[str, Rows], notes: Mapping[str, str]) -> str:
    """Markdown: what was measured on, one table for each kind of section, and what could not be measured."""
    parts = [_machine(name, rows) for name, rows in results.items() if name.startswith("here-")]
    parts += [
        _table("Parity with the torch reference", _PARITY, _each(results, "parity", _parity)),
        _table("Every option, the agent deciding", _UNIFORM, _each(results, "uniform", _uniform)),
        _table("Operating points", _POINTS, _each(results, "points", _point)),
        _table("Memory", _MEMORY, _each(results, "memory", _memory)),
        _table(
            "Engines built", ["where", "engines", "TensorRT", "GPU", "s"], _each(results, "build", _build)
        ),
    ]
    failed = [
        f"- {name}, {row['row']}: {row['error']}"
        for name, rows in results.items()
        for row in rows
        if "error" in row
    ]
    failed += [f"- {name}: {note}" for name, note in notes.items()]
    if failed:
        parts.append("### Not measured\n\n" + "\n".join(failed))
    return "\n\n".join(filter(None, parts)) + "\n"


_PARITY = ["where", "case", "deviation", "decisions equal", "deciding ÷ given, deviation"]
_UNIFORM = [
    "where", "batch", "option", "MACs ÷ dense", "static, ms", "controller, ms", "controller ÷ static",
    "images from the host, ms", "the same, options given, ms", "outputs' deviation", "decisions",
]  # fmt: skip
_POINTS = [
    "where", "batch", "theoretical", "dense, ms", "controller, ms", "actual", "actual ÷ theoretical", "the paper's",
    "the path's static graph's", "controller ÷ that graph", "decisions",
]  # fmt: skip
_MEMORY = ["where", "open", "batch", "MB", "engines", "weights, MB"]


def _each(results: Mapping[str, Rows], kind: str, cells: Any) -> list[list[object]]:
    return [
        [name.removeprefix(f"{kind}-"), *cells(row)]
        for name, rows in results.items()
        if name.startswith(f"{kind}-")
        for row in rows
        if "error" not in row
    ]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    lines = [columns, ["---"] * len(columns), *rows]
    return f"### {title}\n\n" + "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _machine(name: str, rows: Rows) -> str:
    known = [
        f"{key} {value}"
        for row in rows
        for key, value in row.items()
        if key not in ("row", "took_s", "error")
    ]
    return f"**{name}**: {', '.join(known)}"


def _parity(row: Mapping[str, Any]) -> list[object]:
    equal = f"{row['decisions_equal']} of {row['decisions']}" if "decisions" in row else ""
    deciding = f"{row['deviation_deciding']:.1e}" if "deviation_deciding" in row else ""
    return [row["row"], f"{row['deviation']:.1e}", equal, deciding]


def _uniform(row: Mapping[str, Any]) -> list[object]:
    times: Times = row["times"]
    return [
        row["batch"], row["option"], f"{row['macs_share']:.3f}", _ms(times, "static"), _ms(times, "controller"),
        ratio(times, "controller", "static"), _ms(times, "from host"), _ms(times, "from host, options given"),
        f"{row['deviation']:.1e}", _right(row),
    ]  # fmt: skip


def _point(row: Mapping[str, Any]) -> list[object]:
    times, theoretical = row["times"], row["theoretical"]
    actual, tenth = (times["dense"][q] / times["controller"][q] for q in ("p50", "p10"))
    static = times["dense"]["p50"] / times["static"]["p50"]
    return [
        row["batch"], f"{theoretical:.2f}", _ms(times, "dense"), _ms(times, "controller"), f"{actual:.2f}",
        f"{actual / theoretical:.3f} ({tenth / theoretical:.3f})", PAPER_SHARES[row["target"]],
        f"{static / theoretical:.3f}", ratio(times, "controller", "static"), _right(row),
    ]  # fmt: skip


def _memory(row: Mapping[str, Any]) -> list[object]:
    weights = f"{row['weight_bytes'] / 1e6:.0f}" if "weight_bytes" in row else ""
    return [row["row"], row.get("batch", ""), f"{row['bytes'] / 1e6:.0f}", row.get("engines", ""), weights]


def _build(row: Mapping[str, Any]) -> list[object]:
    made = row["fingerprint"]
    return [row["engines"], f"{made['flavor']} {made['tensorrt']}", made.get("gpu", ""), row["took_s"]]


def _ms(times: Times, name: str) -> str:
    return f"{times[name]['p50']:.3f}"


def ratio(times: Times, name: str, rival: str) -> str:
    """Of the medians, and in brackets of the 10th percentiles: where they differ, the machine was not quiet."""
    p50, p10 = (times[name][q] / times[rival][q] for q in ("p50", "p10"))
    return f"{p50:.3f} ({p10:.3f})"


def _right(row: Mapping[str, Any]) -> str:
    return "as scripted" if row["decisions_right"] else "OTHERS"
