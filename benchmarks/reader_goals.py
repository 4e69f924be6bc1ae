"""What the reader has to reach."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]


def find(rows: list[Result], reader: str, work: str, threads: int = 1) -> Result:
    return next((r for r in rows if (r["reader"], r["work"], r["threads"]) == (reader, work, threads)), {})


def check_goals(rows: list[Result], pairs: dict[str, dict[str, float]]) -> list[tuple[str, float | None, bool]]:
    """Return each goal with what was measured and whether it is met.

    Args:
        pairs: what ``reader_pairs`` measured: ratios of the limit and ours in one process.
    """

    def value(reader: str, work: str, name: str, threads: int = 1) -> float | None:
        return find(rows, reader, work, threads).get(name)

    def over(work: str) -> float | None:
        ours, theirs = value("pyrtrav read_many", work, "rate"), value("OpenSlide", work, "rate")
        return ours / theirs if ours and theirs else None

    def inverse(number: float | None) -> float | None:
        return 1 / number if number else None

    def paired(work: str, name: str) -> float | None:
        return pairs.get(work, {}).get(name)

    def limit(work: str) -> str:
        gain = paired(work, "limit_gain")
        return f" (the limit itself: {gain:.2f})" if gain else ""

    at_least, at_most = 1.0, -1.0
    goals = [
        ("aligned, of the limit, at least 0.90", paired("aligned", "of_limit"), 0.90, at_least),
        ("unaligned, of the limit, at least 0.90", paired("unaligned", "of_limit"), 0.90, at_least),
        (f"aligned, two threads over one, at least 1.8{limit('aligned')}", paired("aligned", "gain"), 1.8, at_least),
        (
            f"unaligned, two threads over one, at least 1.8{limit('unaligned')}",
            paired("unaligned", "gain"),
            1.8,
            at_least,
        ),
        ("block, cost of its tiles once, at most 1.3", inverse(paired("block", "of_limit")), 1.3, at_most),
        ("aligned, times OpenSlide, at least 5", over("aligned"), 5, at_least),
        ("unaligned, times OpenSlide, at least 2", over("unaligned"), 2, at_least),
        ("block, times OpenSlide, at least 8", over("block"), 8, at_least),
        ("open, ms, at most 25", value("pyrtrav read", "open", "open_ms"), 25, at_most),
        ("open, MiB, at most 40", value("pyrtrav read", "open", "growth_mib"), 40, at_most),
    ]
    return [(name, number, number is not None and (number - goal) * sign >= 0) for name, number, goal, sign in goals]
