"""The model card of an exported file: its manifest, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from boxseg.errors import counted
from boxseg.runtime.golden_sample import NOTHING_EXPECTED

NOT_STATED = "not stated"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """Return a Markdown table and an empty line."""
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *([str(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(_cell(word) for word in line) + " |" for line in lines] + [""]


def _cell(text: str) -> str:
    """Keep a text inside its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _percent(value: object) -> str:
    """Write a share in percent; a number that does not exist is a dash."""
    return f"{100 * value:.1f}" if isinstance(value, float) else "-"


def _training_lines(training: Mapping[str, Any]) -> list[str]:
    """Say how the network was trained."""
    if not training.get("recipe"):
        return ["The model file does not say how it was trained.", ""]
    recipe, data, best = (training.get(key) or {} for key in ("recipe", "data", "best"))
    model, schedule = recipe.get("model") or {}, recipe.get("schedule") or {}
    terms = [name for name, value in (recipe.get("terms") or {}).items() if value is not None]
    rows = [
        ("Backbone", f"{model.get('backbone')}, started from {model.get('weights') or 'nothing'}"),
        ("Loss terms", ", ".join(terms)),
        ("Steps", f"{training.get('step')} of {schedule.get('max_iters')}"),
        ("Data", f"{data.get('images')} images, sha256 {data.get('annotations_sha256')}"),
    ]
    score = best.get("score")
    if isinstance(score, (int, float)) and score >= 0:
        what = "best score in validation (box AP x tightness, or mask AP with true masks)"
        rows.append((what, f"{100 * score:.1f} at step {best.get('step')}"))
    return [*_table(("", ""), rows), "The whole recipe is in the manifest.", ""]


def _parity_lines(proofs: Mapping[str, Any], verified: bool) -> list[str]:
    """Say how the file compares with torch."""
    lines = []
    if not verified:
        lines += ["**Not verified:** no engine where it was written could run it.", ""]
    if "replay" in proofs:
        lines += [
            "No engine where it was written could run it. Since then "
            f"{proofs['replay']['backend']}, has: its golden sample was answered as expected.",
            "",
        ]
    for key, what in (("parity", "The file"), ("imitation", "Its graph with rounding imitated")):
        found = proofs.get(key)
        if found is None:
            continue
        detections = found["detections"]
        lines += [
            f"{what} on {found['backend']} beside the network in torch, on {found['samples']}: "
            f"{detections['matched']} of {detections['expected']} detections have a partner "
            f"(score within {detections['score']:.1e}, box IoU at least "
            f"{detections['box_iou']:.4f}, mask IoU at least {detections['mask_iou']:.4f}).",
            "",
            *_table(
                ("output", "largest difference", "allowed"),
                (
                    (part["name"], f"{part['difference']:.2e}", f"{part['allowed']:.2e}")
                    for part in found["tensors"]
                ),
            ),
        ]
    return lines


def _accuracy_lines(scores: Mapping[str, Any]) -> list[str]:
    """Say what the file scores."""
    if "not_measured" in scores:
        return [f"Not measured at export: {scores['not_measured']}.", ""]
    rows = [
        (kind, *(_percent(scores[kind][key]) for key in ("AP", "AP50", "AP75")))
        for kind in ("box", "mask")
        if scores[kind] is not None
    ]
    tightness = _percent(scores["tightness"])
    lines = _table(("COCO, percent", "AP", "AP50", "AP75"), rows)
    lines += [
        f"Of {scores['what']} of {scores['data']}, {counted(scores['objects'], 'object')}. "
        f"Tightness of the masks in their boxes: {tightness}.",
        "",
    ]
    if scores["mask"] is None:
        lines += [f"Mask AP: no masks in {scores['data']}.", ""]
    return lines


def _strip_lines(strip: Mapping[str, Any]) -> list[str]:
    """Say what shipped and what stayed behind."""
    shipped = strip["shipped"]
    rows = [("**shipped**", shipped["weights"], shipped["parameters"], shipped["size_bytes"])]
    rows += [
        (entry["part"], entry["tensors"], entry["parameters"], entry["size_bytes"])
        for entry in strip["left_behind"]
    ]
    return [
        "Every weight was traced to the model file by name, shape and bytes. What training had "
        "besides stayed behind."
        if len(rows) > 1
        else "Every weight was traced to the model file by name, shape and bytes.",
        "",
        *_table(
            ("part", "tensors", "numbers", "bytes"),
            ((part, f"{n:,}", f"{p:,}", f"{b:,}") for part, n, p, b in rows),
        ),
    ]


def model_card(manifest: Mapping[str, Any]) -> str:
    """Return the card as Markdown.

    Args:
        manifest: What `boxseg.export.manifest` writes.
    """
    name, said = manifest["name"], manifest["metadata"]
    golden, licence, size = manifest["golden"], manifest["licence"], said["imgsz"]
    precision = manifest["precision"]
    title = counted(len(said["classes"]), "class")
    lines = [
        f"# {name}",
        "",
        f"Instance segmentation of {title}, written by {said['producer']} as {manifest['format']} "
        f"in {precision['asked']} for inputs of {size['height']} x {size['width']} "
        f"(height x width). Weights: {said['weights']}.",
        "",
        "```",
        f"boxseg verify {name}",
        f"boxseg predict {name} PHOTOS --out PICTURES",
        "```",
        "",
        "## Classes",
        "",
        *_table(
            ("index", "category id of the data set", "name"),
            (
                (index, identity, label)
                for index, (identity, label) in enumerate(
                    zip(said["category_ids"], said["classes"], strict=True)
                )
            ),
        ),
        "## Input and output",
        "",
        *_table(("", "rule"), ((k.replace("_", " "), v) for k, v in manifest["rules"].items())),
        "## Training",
        "",
        *_training_lines(manifest["training"]),
        "## Accuracy",
        "",
        *_accuracy_lines(manifest["accuracy"]),
        "## Agreement with the network in torch",
        "",
        *_parity_lines(manifest["proofs"], manifest["verified"]),
    ]
    if golden is not None:
        found = len(golden["detections"])
        lines += [
            "## Golden sample",
            "",
            f"![the golden sample]({golden['image']})",
            "",
            f"The image is {golden['source']}. Expected on it: "
            f"{counted(found, 'instance')}, the answer of {golden['reference']}. "
            f"`boxseg verify {name}` holds a machine against it.",
            "",
        ]
        if found == 0:
            lines += [f"**Warning:** {NOTHING_EXPECTED}.", ""]
    lines += ["## Weights", "", *_strip_lines(manifest["strip"])]
    if "calibration" in precision:
        lines += [
            f"Asked: {precision['asked']}; {len(precision['kept'])} nodes stay in fp32, the "
            f"manifest says why. Ranges were measured on {precision['calibration']['source']}.",
            "",
        ]
        for doubt in precision["calibration"].get("doubts", ()):
            lines += [f"**Warning:** {doubt}.", ""]
    lines += [
        "## Licences",
        "",
        *_table(
            ("of", "licence"),
            ((part, licence.get(part) or NOT_STATED) for part in ("code", "weights", "data")),
        ),
        "## Files and versions",
        "",
        *_table(
            ("file", "bytes", "sha256"),
            ((e["name"], f"{e['bytes']:,}", f"`{e['sha256']}`") for e in manifest["files"]),
        ),
        ", ".join(f"{key} {value}" for key, value in manifest["versions"].items()),
    ]
    return "\n".join(lines) + "\n"
