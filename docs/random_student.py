"""Write a model file of a recipe with random weights, to time a network that nobody has trained.

    python docs/random_student.py boxinst_resnet50 $BOXSEG_DATA/carparts student.pt --imgsz 640 640

Classes are those of the data folder's train.json. An engine takes the same time whatever the
weights are; a network that finds nothing has no masks to make.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from boxseg.checkpoint import save_model
from boxseg.configs import find_recipe
from boxseg.runtime.accuracy import load_truth
from boxseg.student import Student
from boxseg.train.recipe import read_recipe


def main() -> None:
    """Write one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--imgsz", type=int, nargs=2, help="height and width; else the recipe's")
    parser.add_argument("--candidates", type=int, help="K; else the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    classes = load_truth(given.data / "train.json").categories
    config = read_recipe(find_recipe(given.recipe)).model.build(
        tuple(classes.values()), tuple(classes)
    )
    if given.imgsz is not None:
        config = replace(config, imgsz=tuple(given.imgsz), short_long=None)
    if given.candidates is not None:
        config = replace(config, candidates=given.candidates)
    torch.manual_seed(given.seed)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    save_model(given.out, Student(config))
    print(f"{given.out}: {config.backbone}, {len(classes)} classes, {config.imgsz}, random weights")


if __name__ == "__main__":
    main()
