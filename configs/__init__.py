"""Recipes: one YAML per published row; this module only finds them."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def known_recipes() -> list[str]:
    """Return the names of the recipes that ship, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_recipe(name_or_file: str) -> Path:
    """Return the file of a recipe.

    Args:
        name_or_file: The name of a recipe that ships (`boxinst_mobilenetv2`) or a path to a YAML
            file. What ends in .yaml or .yml or holds a slash is taken for a path.

    Raises:
        ValueError: if there is no such recipe; the message lists the known names.
    """
    looks_like_path = name_or_file.endswith((".yaml", ".yml")) or "/" in name_or_file
    path = Path(name_or_file) if looks_like_path else FOLDER / f"{name_or_file}.yaml"
    if path.is_file():
        return path
    what = "file" if looks_like_path else "recipe"
    raise ValueError(
        f"--config: there is no {what} {name_or_file!r}; known recipes: "
        f"{', '.join(known_recipes())}; or give the path of a YAML file"
    )
