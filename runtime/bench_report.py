"""The record of a benchmark as text, as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boxseg.errors import BackendMissingError, counted

INSIDE = {
    "letterbox": "resize and padding of a frame in memory to the input, in C",
    "engine": "the engine's run, from the input in the computer's memory to the outputs there; on "
    "a GPU the copies to it and back are inside",
    "select": "candidates, scores and suppression, in C",
    "masks": "mask head, threshold and run-length text of every detection, in C",
    "total": "wall clock from a frame in memory to its detections with masks as run-length text; "
    "reading and decoding of image files is outside",
    "first": "the first frame after loading, which already ran one empty frame where the input has "
    "a fixed size",
    "warm-up": "rounds that no other number holds",
    "frames per second": "back to back: rounds over the sum of their totals",
    "against the first": "the median, over the rounds, of a model's time as a share of the first "
    "model's in the same round, how many rounds it won, and in how many blocks of rounds that "
    "median was below 1",
    "batch": "the engine alone, as in its stage, one run on B copies of one letterboxed frame",
    "objects": "the engine runs as ever; then its outputs are exchanged for synthetic ones that "
    "hold N objects of class 0 on a square grid over the frame, boxes of 1/8 of the input's sides, "
    "masks that are diamonds in them (the whole box where the mask head has less than 4 channels); "
    "select, masks and total are those of such a frame",
    "paced": "one frame at every tick; from the tick to its detections, and the machine idles "
    "between; models take turns in blocks of 10 frames, the first of a block is not timed",
    "streams": "so many copies of the file's engine at once, each in a thread of its own, whole "
    "frames",
    "memory": "resident memory that loading the file (with one empty frame, where the input has a "
    "fixed size) added to this process, and its peak meanwhile; the first file of an engine "
    "carries the engine's libraries; on a GPU also what it added to all that is taken there, by "
    "whatever program",
    "accuracy": "COCO AP in percent of the same opened file at conf 0, before any time was taken",
}
"""What each number holds."""


def stage_line(name: str, stage: Mapping[str, float]) -> str:
    """Return one row of a table of milliseconds."""
    columns = "".join(f"{stage[key]:>9.2f}" for key in ("p50", "p90", "p99", "mean"))
    return f"  {name:<14}{columns}"


def _memory_text(memory: Mapping[str, Any]) -> str:
    """Say what a file costs in memory."""
    parts = [
        f"{memory[key] / 2**20:.0f} MiB {what}"
        for key, what in (
            ("resident_bytes", "resident"),
            ("peak_bytes", "at its peak"),
            ("gpu_bytes", "on the GPU"),
        )
        if memory[key] is not None
    ]
    return ", ".join(parts) if parts else "not known on this system"


def _compared_text(entry: Mapping[str, Any], rounds: int) -> str:
    """Say how a model stands to the first."""
    parts = []
    for name, found in entry["compared"].items():
        won = f"less in {found['faster']} of {rounds} rounds"
        if found["blocks"]:
            won += f", in {found['blocks_faster']} of {found['blocks']} blocks of {found['block']}"
        parts.append(f"{name} {found['ratio']:.3f} x ({won})")
    return ", ".join(parts)


def record_lines(record: Mapping[str, Any]) -> list[str]:
    """Return everything about one model.

    Args:
        record: One entry of `models` in the JSON.
    """
    device = record["device"] if record["gpu"] is None else f"{record['device']}, {record['gpu']}"
    heading = (
        f"{record['model']} ({record['bytes'] / 1e6:.1f} MB): {record['backend']} on "
        f"{device}, {record['precision']}, {threads_text(record)}, {record['input']}, "
        f"loaded in {record['load_ms']:.0f} ms"
    )
    lines = [
        heading,
        f"  {'ms':<14}{'p50':>9}{'p90':>9}{'p99':>9}{'mean':>9}",
        *(stage_line(name, stage) for name, stage in record["stages"].items()),
        f"  {record['frames_per_second']:.1f} frames per second, "
        f"{record['detections_mean']:.1f} detections per frame (at most "
        f"{record['detections_most']}), first frame {record['first_ms']:.0f} ms",
    ]
    if record["gpu"] is not None:
        lines.append("  engine: the copies to the GPU and back are inside")
    warmup = record["warmup"]
    if warmup is not None:
        lines.append(f"  warm-up: p50 {warmup['p50']:.2f} ms, p99 {warmup['p99']:.2f} ms")
    if record["compared"]:
        beside = Path(str(record["against"])).name
        lines.append(f"  against {beside}: {_compared_text(record, record['rounds'])}")
    lines.append(f"  memory: {_memory_text(record['memory'])}")
    for entry in record["batches"]:
        if "skipped" in entry:
            lines.append(f"  engine x {entry['batch']}: {entry['skipped']}")
            continue
        lines.append(stage_line(f"engine x {entry['batch']}", entry))
        lines.append(
            f"  {1000 * entry['batch'] / entry['mean']:.1f} images per second in the engine alone"
        )
    for entry in record["objects"]:
        lines += [
            stage_line(f"{entry['objects']} obj {name}", entry["stages"][name])
            for name in ("select", "masks", "total")
        ]
        if entry["compared"]:
            lines.append(f"  against the first: {_compared_text(entry, entry['rounds'])}")
    paced = record["paced"]
    if paced is not None:
        lines.append(stage_line(f"at {paced['hz']:g} Hz", paced["latency"]))
        lines.append(
            f"  of {paced['frames']} paced frames {paced['late']} late, {paced['dropped']} dropped"
        )
    streams = record["streams"]
    if streams is not None:
        lines.append(stage_line(f"{streams['streams']} streams", streams["total"]))
        lines.append(f"  {streams['frames_per_second']:.1f} frames per second of all streams")
    accuracy = record["accuracy"]
    if accuracy is not None:
        lines.append(
            f"  box AP {_ap(accuracy, 'box')}, mask AP {_ap(accuracy, 'mask')} on "
            f"{counted(accuracy['images'], 'image')}"
        )
    return lines


def threads_text(record: Mapping[str, Any]) -> str:
    """Say how many threads an engine has."""
    threads = record["threads"]
    if threads is None:
        return f"threads of {record['backend']} as they are"
    return counted(threads, "thread")


def _ap(accuracy: Mapping[str, Any], kind: str) -> str:
    """Write an AP in percent; a dash where there is no truth."""
    found = accuracy[kind]
    return "-" if found is None or found["AP"] is None else f"{100 * found['AP']:.1f}"


def _summary(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table that compares models."""
    head = ["model", "engine", "precision", "MB", "engine p50", "total p50", "p90", "p99", "fps"]
    with_accuracy = any(record["accuracy"] is not None for record in records)
    head += ["box AP", "mask AP"] if with_accuracy else []
    rows = []
    for record in records:
        engine, total = (record["stages"].get(name) for name in ("engine", "total"))
        row = [str(record["model"]), str(record["backend"]), str(record["precision"])]
        row.append(f"{record['bytes'] / 1e6:.1f}")
        row.append("-" if engine is None else f"{engine['p50']:.2f}")
        row += [f"{total[key]:.2f}" for key in ("p50", "p90", "p99")]
        row.append(f"{record['frames_per_second']:.1f}")
        if with_accuracy:
            found = record["accuracy"]
            row += ["-", "-"] if found is None else [_ap(found, kind) for kind in ("box", "mask")]
        rows.append(row)
    return head, rows


def table_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table that compares models, for a terminal; times in milliseconds."""
    head, rows = _summary(records)
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(
            word.ljust(width) if i < 3 else word.rjust(width)
            for i, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *rows)
    ]


def used_numbers(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of INSIDE that a record has."""
    names = [name for name in INSIDE if any(name in record["stages"] for record in records)]
    names += ["first", "warm-up", "frames per second", "memory"]
    for key, name in (
        ("compared", "against the first"),
        ("batches", "batch"),
        ("objects", "objects"),
        ("paced", "paced"),
        ("streams", "streams"),
        ("accuracy", "accuracy"),
    ):
        if any(record[key] for record in records):
            names.append(name)
    return names


def markdown(content: Mapping[str, Any]) -> str:
    """Return the whole record as Markdown.

    Args:
        content: What `boxseg bench --json` writes.
    """
    records, machine, settings = content["models"], content["machine"], content["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    head, rows = _summary(records)
    lines = [
        "# Benchmark",
        "",
        f"{machine['cpu']}, {machine['cores']} of {machine['cores_present']} cores, "
        f"{machine['system']}, Python {machine['python']}, boxseg {machine['boxseg']}, {versions}.",
        "",
        f"{content['frames']}; {settings['warmup']} rounds of warm-up, "
        f"{records[0]['rounds']} timed rounds in which the models take turns. Milliseconds.",
        "",
        *("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)),
    ]
    for record in records:
        lines += ["", "```", *record_lines(record), "```"]
    lines += ["", "What is inside:", ""]
    lines += [f"- **{name}**: {INSIDE[name]}." for name in used_numbers(records)]
    lines += ["", *content["notes"]] if content["notes"] else []
    return "\n".join(lines) + "\n"


def check_plot(path: Path) -> None:
    """Refuse before the work what cannot be drawn after it.

    Raises:
        BackendMissingError: if matplotlib is not installed.
        ValueError: if it writes no such files.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ModuleNotFoundError:
        raise BackendMissingError(
            "--plot needs matplotlib, which is not installed; pip install boxseg[train]"
        ) from None
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise ValueError(f"--plot must end in .{', .'.join(sorted(kinds))}, got {path}")


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the medians of the stages of each model as one bar, with the total's p99.

    Raises:
        BackendMissingError: if matplotlib is not installed.
        ValueError: if it writes no such files.
    """
    check_plot(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "boxseg"}):  # the same bytes for the same record
        figure = Figure(figsize=(9, 0.6 * len(records) + 1.6), layout="constrained")
        axes = figure.subplots()
        y, left = np.arange(len(records)), np.zeros(len(records))
        names = dict.fromkeys(name for record in records for name in record["stages"])
        for name in names:
            if name == "total":
                continue
            values = np.array(
                [record["stages"].get(name, {"p50": 0.0})["p50"] for record in records]
            )
            axes.barh(y, values, left=left, label=name)
            left += values
        late = [record["stages"]["total"]["p99"] for record in records]
        axes.plot(late, y, "|", color="black", markersize=14, label="total p99")
        labels = [f"{Path(r['model']).name}\n{r['backend']}, {r['precision']}" for r in records]
        axes.set_yticks(y, labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("ms per frame: median of each stage; reading of files is outside")
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
