"""Print what `make demo` measured, from the reports that its commands wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def read(path: Path) -> Any:
    """Read one report."""
    return json.loads(path.read_text(encoding="utf-8"))


def percent(value: float | None) -> str:
    """Format an AP in percent."""
    return "-" if value is None else f"{100 * value:.1f}"


def rows(out: Path) -> list[tuple[str, str]]:
    """Return what to print: (what, value)."""
    accuracy, timing = read(out / "eval.json"), read(out / "bench.json")
    mask, filled = accuracy["mask"], accuracy["filled_boxes"]
    table = [
        ("held-out scenes, objects", f"{accuracy['images']}, {accuracy['objects']}"),
        ("box AP", percent(accuracy["box"]["AP"])),
        ("mask AP50", percent(mask["AP50"])),
        ("mask AP", percent(mask["AP"])),
        ("mask AP, same boxes filled", percent(filled["AP"])),
        ("mask AP, gain over filled boxes", percent(mask["AP"] - filled["AP"])),
    ]
    for name, report in (("ONNX", "verify_onnx.json"), ("OpenVINO", "verify_openvino.json")):
        parity = read(out / report)
        found = parity["detections"]
        table.append(
            (
                f"{name}: parity with torch",
                f"{'ok' if parity['passed'] else 'FAILED'}, "
                f"{found['matched']} of {found['expected']} detections",
            )
        )
    for model in timing["models"]:
        total, engine = model["stages"]["total"], model["stages"]["engine"]
        table.append(
            (
                f"{model['backend']}: frame p50, p90 (engine p50)",
                f"{total['p50']:.1f}, {total['p90']:.1f} ms ({engine['p50']:.1f} ms)",
            )
        )
    machine = timing["machine"]
    threads = timing["settings"]["threads"]
    table.append(("measured on", f"{machine['cpu']}, {threads} threads, batch 1, fp32"))
    return table


def main() -> None:
    """Print the table of the folder given on the command line."""
    out = Path(sys.argv[1])
    table = rows(out)
    if len(sys.argv) > 2:
        table.append(("time for everything", f"{int(sys.argv[2]) / 60:.1f} min"))
    width = max(len(what) for what, _ in table)
    print("\n" + "-" * (width + 34))
    for what, value in table:
        print(f"{what:<{width}}  {value}")
    print("-" * (width + 34))
    print(f"predictions beside truth  {out / 'run' / 'predictions.png'}")
    print(f"training curves           {out / 'run' / 'curves.png'}")
    print(f"more pictures             {out / 'pictures'}")


if __name__ == "__main__":
    main()
