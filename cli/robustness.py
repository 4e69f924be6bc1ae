"""How ``pyrtrav evaluate --corruptions --attack NAME`` shows what a model keeps."""

from typing import Any

from pyrtrav.cli.render import pairs, stdout, table


def print_robustness(report: dict[str, Any]) -> None:
    """Print the tables of a report."""
    data, corruptions, attack = report["data"], report["corruptions"], report["attack"]
    copies = (
        f"; {data['reduced']:,} of them copies of at most {data['side']:,} pixels a side" if data["reduced"] else ""
    )
    judged = f"{data['images']:,} of {data['path']} ({data['split']}){copies}"
    stdout.print(pairs([("images", judged), ("clean accuracy", f"{report['clean']:.3f}")]))
    if corruptions is not None:
        rows = [
            (each["name"].replace("_", " "), *_shown(each["by_severity"]), f"{each['mean']:.3f}")
            for each in corruptions["by_corruption"]
        ]
        rows.append(("mean", *_shown(corruptions["by_severity"]), f"{corruptions['mean']:.3f}"))
        columns = ("corruption", *(f"severity {n}" if n == 1 else str(n) for n in range(1, 6)), "mean")
        stdout.print(table(columns, rows, title="accuracy under common corruptions"))
    if attack is not None:
        unrounded = any(point["unrounded"] is not None for point in attack["points"])
        columns = ("eps (255ths)", "steps", "accuracy", *(["unrounded"] if unrounded else []))
        rows = [
            (
                f"{point['eps']:g}",
                str(point["steps"]),
                f"{point['accuracy']:.3f}",
                *([f"{point['unrounded']:.3f}"] if unrounded else []),
            )
            for point in attack["points"]
        ]
        stdout.print(table(columns, rows, title=f"accuracy under {attack['name']}"))


def _shown(values: list[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]
