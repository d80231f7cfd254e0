"""Recipes: one YAML per published row; this module only finds them.

Beside this file lie the recipes for small data; `coco`, `voc` and `cityscapes` hold the published
rows on those data sets, `ablation` the rows of the papers' ablations. A name is the file's, without
folder and suffix, and names one file.
"""

from difflib import get_close_matches
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def shipped_recipes() -> dict[str, Path]:
    """Return {name: file} of the recipes that ship; those for small data come first."""
    folders = [FOLDER, *(FOLDER / name for name in ("coco", "voc", "cityscapes", "ablation"))]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def known_recipes() -> list[str]:
    """Return the names of the recipes that ship; those for small data come first."""
    return list(shipped_recipes())


def suggest_recipes(name: str) -> str:
    """Say which recipes there are: those like a name, all for small data, and where the rest is."""
    known = known_recipes()
    small = [path.stem for path in sorted(FOLDER.glob("*.yaml"))]
    near = [like for like in get_close_matches(name, known, n=4, cutoff=0.7) if like not in small]
    return (
        f"known recipes: {', '.join([*near, *small])} and {len(known) - len(small) - len(near)} "
        "more in coco, voc, cityscapes and ablation under configs"
    )


def names_a_file(name_or_file: str) -> bool:
    """Whether a text is the path of a file: it ends in .yaml or .yml or holds a slash."""
    return name_or_file.endswith((".yaml", ".yml")) or "/" in name_or_file


def find_recipe(name_or_file: str) -> Path:
    """Return the file of a recipe.

    Args:
        name_or_file: The name of a recipe that ships (`boxinst_mobilenetv2`) or a path to a YAML
            file; see `names_a_file`.

    Raises:
        ValueError: if there is no such recipe; the message says which there are.
    """
    is_path = names_a_file(name_or_file)
    path = Path(name_or_file) if is_path else shipped_recipes().get(name_or_file)
    if path is not None and path.is_file():
        return path
    raise ValueError(
        f"--config: there is no {'file' if is_path else 'recipe'} {name_or_file!r}; "
        f"{suggest_recipes(name_or_file)}; or give the path of a YAML file"
    )
