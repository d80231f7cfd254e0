"""Recipes: reading, overriding, refusing, comparing."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
import torch

from boxseg.config import ModelConfig
from boxseg.configs import FOLDER, find_recipe, known_recipes, shipped_recipes
from boxseg.student import Student
from boxseg.train.criterion import TEACHER_TERMS, build_criterion
from boxseg.train.loader import settings_without_depth
from boxseg.train.memory_bank import build_copy_paste
from boxseg.train.pseudo_masks import build_pseudo_masks
from boxseg.train.recipe import (
    ModelRecipe,
    ScheduleRecipe,
    TeacherRecipe,
    differences,
    expand_path,
    parse_recipe,
    parse_yaml,
    read_recipe,
    recipe_yaml,
)

MINIMAL: dict[str, dict[str, dict[str, float]]] = {
    "terms": {"focal": {}, "giou": {}, "centerness": {}}
}


@cache
def student_of(config: ModelConfig) -> Student:
    """The network without memory; few recipes differ in it."""
    with torch.device("meta"):
        return Student(config)


@pytest.mark.parametrize("name", known_recipes())
def test_every_recipe_that_ships_builds_its_network_its_terms_and_its_masks(name: str) -> None:
    recipe = read_recipe(find_recipe(name))
    config = recipe.model.build(("thing",), (1,))
    network = student_of(config)
    assert all(value.is_meta for value in network.parameters())
    with torch.device("meta"):
        criterion = build_criterion(recipe.terms, config)
    assert criterion.needs_masks == recipe.uses_masks
    needs_depth = criterion.needs_depth
    assert recipe.teacher is not None or not criterion.needs_teacher
    if recipe.pseudo_masks is not None:
        needs_depth |= build_pseudo_masks(recipe.pseudo_masks).needs_depth
    assert bool(settings_without_depth(recipe)) == needs_depth
    if recipe.copy_paste is not None:
        build_copy_paste(recipe.copy_paste)
    # what the papers test: masks say something about the score wherever there is a teacher to learn
    learns = criterion.needs_teacher
    assert config.final_score == ("sqrt_score0_mask" if learns else "score0")


@pytest.mark.parametrize("name", known_recipes())
def test_every_warm_up_of_a_recipe_that_ships_ends_within_its_schedule(name: str) -> None:
    recipe = read_recipe(find_recipe(name))
    steps = recipe.schedule.max_iters
    left = steps - (recipe.teacher.start_step(steps) if recipe.teacher else 0)
    criterion = build_criterion(recipe.terms, recipe.model.build(("thing",), (1,)))
    for term, part in criterion.terms.items():
        end = getattr(part, "start_steps", 0) + getattr(part, "warmup_steps", 0)
        if term != "semantic_focal":  # grows over three times its schedule, as released
            assert end < (left if term in TEACHER_TERMS else steps), term
    if recipe.copy_paste is not None:
        assert getattr(build_copy_paste(recipe.copy_paste), "warmup_steps", 0) < left


@pytest.mark.parametrize(
    "name", [name for name in known_recipes() if name.startswith("pseudo_depth")]
)
def test_depth_consistency_waits_for_the_colours_and_is_whole_when_the_teacher_starts(
    name: str,
) -> None:
    recipe = read_recipe(find_recipe(name))
    term = recipe.terms["depth_consistency"]
    assert recipe.teacher is not None
    assert term["start_steps"] == recipe.terms["pairwise"]["warmup_steps"]
    start = recipe.teacher.start_step(recipe.schedule.max_iters)
    assert int(term["start_steps"]) + int(term["warmup_steps"]) <= start


PUBLISHED = [
    f"{method}_resnet{depth}{schedule}"
    for method, schedules in {
        "boxinst": ("50", "50_3x", "101", "101_3x"),
        "condinst": ("50", "50_3x", "101_3x"),
        "boxteacher": ("50", "50_3x", "101_3x"),
        "boxteacher_copypaste": ("50_3x", "101_3x"),
        "sim": ("50", "101", "101_3x"),
        "pseudo_depth": ("101_3x",),
        "boxseg": ("50", "50_3x", "101_3x"),
        "boxseg_depth": ("50", "50_3x", "101_3x"),
        "boxinst_pc": ("101_3x",),
        "sim_pc": ("101_3x",),
        "sim_pc_qam": ("101_3x",),
        **{f"{name}_voc": ("50", "101") for name in ("boxinst", "sim", "boxteacher", "boxseg")},
        **{f"{name}_cityscapes": ("50",) for name in ("boxteacher", "pseudo_depth")},
        **{
            f"ablation_{name}": ("50", "50_3x")
            for name in ("baseline", "bpma", "boxteacher", "bqr", "qmf", "mqs")
        },
        **{f"ablation_{name}": ("50_3x",) for name in ("pc_random", "pc_random_place")},
        "ablation_fixed_k": ("101_3x",),
    }.items()
    for row in schedules
    for depth, _, rest in [row.partition("_")]
    for schedule in [f"_{rest}" if rest else ""]
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_row_has_its_backbone_and_its_schedule(name: str) -> None:
    recipe = read_recipe(find_recipe(name))
    schedule = recipe.schedule
    drops = [round(milestone * schedule.max_iters) for milestone in schedule.milestones]
    assert recipe.model.backbone == ("resnet50" if "resnet50" in name else "resnet101")
    assert (schedule.optimizer, schedule.lr, schedule.weight_decay) == ("sgd", 0.01, 1e-4)
    wanted = (90_000, [60_000, 80_000])
    if "voc" in name:
        wanted = (18_000, [12_000, 16_000])
    elif "cityscapes" in name:
        wanted = (24_000, [18_000])
    elif name.endswith("_3x"):
        wanted = (270_000, [210_000, 250_000])
    assert (schedule.max_iters, drops) == wanted


def changes(old: str, new: str) -> list[str]:
    """Settings in which two recipes that ship differ."""
    return differences(read_recipe(find_recipe(old)), read_recipe(find_recipe(new)))


def test_the_steps_of_the_ablation_differ_in_one_part_each() -> None:
    masks = "pseudo_masks.quality_aware."
    assert changes("ablation_bqr_resnet50", "ablation_qmf_resnet50") == [
        masks + "fusion: mean -> not set"
    ]
    assert changes("ablation_qmf_resnet50", "ablation_mqs_resnet50") == [
        "pseudo_masks.quality_aware: not set -> {}",
        masks + "quality: one -> not set",
    ]
    for old, new in (
        ("ablation_mqs_resnet50", "boxseg_resnet50"),
        ("ablation_pc_random_resnet50_3x", "boxseg_resnet50_3x"),
        ("sim_resnet101_3x", "sim_pc_resnet101_3x"),
        ("boxteacher_resnet50_3x", "boxteacher_copypaste_resnet50_3x"),
    ):
        assert {line.split(".")[0].split(":")[0] for line in changes(old, new)} == {"copy_paste"}
    assert changes("ablation_fixed_k_resnet101_3x", "boxseg_resnet101_3x") == [
        "pseudo_masks.quality_aware: not set -> {}",
        masks + "candidates: 10 -> not set",
    ]
    assert changes("ablation_baseline_resnet50", "boxinst_resnet50") == [
        "terms.focal: not set -> {}",
        "terms.varifocal.constant_weight: False -> not set",
    ]


def test_our_own_recipe_is_boxseg_with_depth_in_the_pairs_and_the_ranking() -> None:
    for student in ("resnet50", "mobilenetv2"):
        ours = read_recipe(find_recipe(f"boxseg_depth_{student}"))
        boxseg = read_recipe(find_recipe(f"boxseg_{student}"))
        assert set(ours.terms) == set(boxseg.terms)
        pairs = {"threshold": 0.1, "depth_threshold": 0.01}
        assert ours.terms["pairwise"] == {**boxseg.terms["pairwise"], **pairs}
        assert ours.pseudo_masks == {"quality_aware": {"depth_ranking": 0.3}}
        assert (ours.teacher, ours.copy_paste) == (boxseg.teacher, boxseg.copy_paste)


def test_the_edge_recipe_is_boxinst_on_a_slim_network_with_half_as_many_steps_again() -> None:
    found = changes("boxinst_mobilenetv2", "boxinst_edge")
    assert [line for line in found if not line.startswith("model.")] == [
        "schedule.max_iters: 800 -> 1200"
    ]


@pytest.mark.parametrize("name", known_recipes())
def test_the_head_comment_says_command_hardware_time_and_ap(name: str) -> None:
    text = find_recipe(name).read_text(encoding="utf-8")
    head = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    for word in ("Command   boxseg train --config " + name, "Hardware", "Time", "AP"):
        assert word in head


def test_the_small_recipe_has_the_settings_of_the_reference_run_but_for_its_optimiser() -> None:
    recipe = read_recipe(find_recipe("boxinst_mobilenetv2"))
    assert recipe.model.weights == "$BOXSEG_DATA/weights/mobilenet_v2_imagenet.pth"
    assert (recipe.model.frozen_stages, recipe.model.frozen_bn) == (0, False)
    assert (recipe.model.fpn_channels, recipe.model.tower_channels) == (256, 256)
    assert recipe.model.build(("a",), (1,)).mask_head_parameters == 233
    assert recipe.model.short_long == (320, 640)
    assert recipe.data.short_sides == (256, 288, 320, 352)
    assert (recipe.data.long_side, recipe.data.batch_size, recipe.data.flip) == (640, 4, "on")
    schedule = recipe.schedule
    assert (schedule.max_iters, schedule.warmup_steps) == (800, 100)
    assert schedule.milestones == (0.7, 0.9)
    # the reference: SGD at 0.005, no clipping, a pairwise warm-up of 800 // 9 steps
    assert (schedule.optimizer, schedule.lr, schedule.weight_decay) == ("adamw", 3e-4, 0.01)
    assert schedule.clip_norm == 5.0
    assert recipe.terms["pairwise"]["warmup_steps"] == 200


def test_the_ceiling_differs_from_boxinst_in_its_mask_terms_only() -> None:
    boxes = read_recipe(find_recipe("boxinst_mobilenetv2"))
    masks = read_recipe(find_recipe("condinst_mobilenetv2"))
    assert {line.split(".")[0] for line in differences(boxes, masks)} == {"terms"}
    assert masks.uses_masks
    assert not boxes.uses_masks


def test_the_network_defaults_are_those_of_the_model_config() -> None:
    ours = ModelRecipe()
    for field in fields(ModelConfig):
        if field.name not in ("classes", "category_ids"):
            assert getattr(ours, field.name) == field.default, field.name
    extra = set(ModelRecipe.model_fields) - {field.name for field in fields(ModelConfig)}
    assert extra == {"weights", "frozen_stages", "frozen_bn"}


def test_a_recipe_survives_writing_and_reading() -> None:
    recipe = parse_recipe(MINIMAL, ["data.flip={left: right}", "schedule.lr=1e-3"])
    assert parse_recipe(parse_yaml(recipe_yaml(recipe), "text")) == recipe


def test_an_override_changes_one_value_and_leaves_the_source_alone() -> None:
    values = {"terms": {"focal": {}, "pairwise": {"threshold": 0.3}}}
    recipe = parse_recipe(
        values,
        ["terms.pairwise.threshold=0.2", "schedule.lr=2e-3", "data.flip=off", "data.workers=0"],
    )
    assert recipe.terms["pairwise"] == {"threshold": 0.2}
    assert (recipe.schedule.lr, recipe.data.flip, recipe.data.workers) == (0.002, "off", 0)
    assert values == {"terms": {"focal": {}, "pairwise": {"threshold": 0.3}}}


def test_null_removes_a_term_and_braces_add_one() -> None:
    recipe = parse_recipe(MINIMAL, ["terms.focal=null", "terms.varifocal={}"])
    assert list(recipe.terms) == ["giou", "centerness", "varifocal"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.lr=-1", r"schedule\.lr: .*greater than 0, got -1"),
        ("schedule.lr=.nan", r"schedule\.lr: .*finite"),
        ("schedule.rate=1", r"schedule\.rate is not a setting; schedule has: clip_norm, lr"),
        ("shedule.lr=1", r"shedule is not a setting; a recipe has: copy_paste, data, model"),
        ("schedule=1", r"schedule names a section"),
        ("schedule.lr.x=1", r"schedule\.lr is .* has no settings|schedule\.lr"),
        ("schedule.lr", r"key=value"),
        ("=3", r"key=value"),
        ("schedule.lr=[", r"not valid YAML"),
        ("schedule.lr=!!python/object/apply:os.getcwd []", r"not valid YAML"),
        ("schedule.milestones=[0.9, 0.7]", r"schedule\.milestones must be rising"),
        ("model.imgsz=[300, 640]", r"model\.imgsz must be multiples of 32"),
        ("model.backbone=vgg", r"model\.backbone: .*'resnet50'.*got 'vgg'"),
        ("data.classes=[]", r"data\.classes: .* at least 1"),
        ("data.flip=sideways", r"data\.flip must be off, on or"),
        ("data.short_sides=[2000]", r"data\.short_sides must lie between 32 and data\.long_side"),
        ("data.batch_size=0", r"data\.batch_size: .*got 0"),
        ("terms.pairwise=3", r"terms\.pairwise must be a mapping of options"),
        ("terms.pairwise={threshold: [1]}", r"terms\.pairwise\.threshold must be a number"),
        ("terms={}", r"terms is empty"),
        ("precision=8-bit", r"precision: .*32-true"),
    ],
)
def test_a_wrong_override_is_refused_with_its_whole_path(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_recipe(MINIMAL, [override])
    assert "\n" not in str(caught.value)


def test_a_missing_section_of_terms_and_a_wrong_root_are_one_line() -> None:
    with pytest.raises(ValueError, match="terms is missing"):
        parse_recipe({})
    with pytest.raises(ValueError, match="a recipe is a mapping of settings"):
        parse_recipe([1, 2])


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"data\.workers.*; schedule\.lr"):
        parse_recipe(MINIMAL, ["schedule.lr=0", "data.workers=-1"])


def test_broken_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: {backbone: [}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.yaml line 1: not valid YAML"):
        read_recipe(broken)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        read_recipe(binary)
    deep = tmp_path / "deep.yaml"
    deep.write_text("[" * 5000, encoding="utf-8")
    with pytest.raises(ValueError, match="not valid YAML"):
        read_recipe(deep)


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'boxinst'.*boxinst_mobilenetv2"):
        find_recipe("boxinst")
    with pytest.raises(ValueError, match=r"no file 'nowhere/x\.yaml'"):
        find_recipe("nowhere/x.yaml")


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_builds_on_a_recipe_that_ships() -> None:
    ours = read_recipe(find_recipe("boxinst_mobilenetv2"))
    masks = read_recipe(find_recipe("condinst_mobilenetv2"))
    assert ours.model == masks.model
    assert list(masks.terms) == ["varifocal", "giou", "centerness", "mask_dice"]


def test_mappings_merge_lists_and_values_replace_and_null_removes(tmp_path: Path) -> None:
    write(
        tmp_path,
        "ground.yaml",
        "schedule: {lr: 0.5, milestones: [0.5, 0.6]}\n"
        "terms: {focal: {alpha: 0.3, gamma: 1}, giou: {weight: 2}, projection: {}}\n"
        "teacher: {}\npseudo_masks: {a: {k: 1, j: 2}}\n",
    )
    write(
        tmp_path,
        "sub/middle.yaml",
        "base: ../ground.yaml\nschedule: {milestones: [0.9]}\n"
        "terms: {focal: {gamma: 3}, giou: null, projection: null}\npseudo_masks: {a: {k: 3}}\n",
    )
    top = write(tmp_path, "top.yaml", "base: sub/middle.yaml\nterms: {giou: {}, centerness: {}}\n")
    recipe = read_recipe(top, ["terms.focal.alpha=0.1"])
    assert (recipe.schedule.lr, recipe.schedule.milestones) == (0.5, (0.9,))
    # giou was taken out on the way, so its old weight does not come back
    assert recipe.terms == {"focal": {"alpha": 0.1, "gamma": 3}, "giou": {}, "centerness": {}}
    assert recipe.pseudo_masks == {"a": {"k": 3, "j": 2}}
    other = write(tmp_path, "other.yaml", "base: top.yaml\npseudo_masks: {a: null, b: {}}\n")
    assert read_recipe(other).pseudo_masks == {"b": {}}
    bare = write(tmp_path, "bare.yaml", "base: top.yaml\nteacher: null\npseudo_masks: null\n")
    assert read_recipe(bare).teacher is None


def test_a_recipe_that_is_written_down_needs_no_base(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", "base: scenes_demo\nseed: 7\n")
    recipe = read_recipe(path)
    again = write(tmp_path / "elsewhere", "config.yaml", recipe_yaml(recipe))
    assert "base" not in again.read_text(encoding="utf-8")
    assert read_recipe(again) == recipe
    assert differences(read_recipe(find_recipe("scenes_demo")), recipe) == ["seed: 0 -> 7"]


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            "nothing",
            r"mine\.yaml: base: there is no recipe 'nothing'; known recipes: .*scenes_demo",
        ),
        ("nothing.yaml", r"mine\.yaml: base: there is no file .*nothing\.yaml"),
        ("/etc/hosts.yaml", r"base must be a path relative to this file, got /etc/hosts\.yaml"),
        ("3", r"base must be the name of a recipe or the path of a YAML file, got 3"),
        ("", r"base must be the name .* got None"),
        ("mine.yaml", r"base leads in a circle: mine\.yaml -> mine\.yaml"),
        ("there.yaml", r"circle: mine\.yaml -> there\.yaml -> mine\.yaml"),
        ("list.yaml", r"list\.yaml: a recipe is a mapping of settings, got \[1\]"),
        ("broken.yaml", r"broken\.yaml line 1: not valid YAML"),
    ],
)
def test_a_base_that_cannot_be_is_one_line(tmp_path: Path, base: str, message: str) -> None:
    write(tmp_path, "there.yaml", "base: ./mine.yaml\n")
    write(tmp_path, "list.yaml", "[1]")
    write(tmp_path, "broken.yaml", "{")
    path = write(tmp_path, "mine.yaml", f"base: {base}\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_wrong_setting_of_a_base_is_named_with_its_path(tmp_path: Path) -> None:
    write(tmp_path, "ground.yaml", "terms: {focal: {}}\nschedule: {rate: 1}\n")
    path = write(tmp_path, "mine.yaml", "base: ground.yaml\nschedule: {lr: 1}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: schedule\.rate is not a setting"):
        read_recipe(path)


def test_each_name_of_a_recipe_is_one_file() -> None:
    names = [path.stem for path in FOLDER.rglob("*.yaml")]
    assert sorted(names) == sorted(known_recipes())


def test_differences_name_paths_and_ignore_the_loader() -> None:
    old = parse_recipe(MINIMAL)
    new = parse_recipe(
        MINIMAL, ["schedule.lr=0.5", "data.workers=7", "terms.pairwise={threshold: 0.1}"]
    )
    assert differences(old, old) == []
    assert differences(old, new) == [
        "schedule.lr: 0.01 -> 0.5",
        "terms.pairwise.threshold: not set -> 0.1",
    ]


def test_differences_name_a_part_that_has_no_options() -> None:
    new = parse_recipe(MINIMAL, ["terms.focal=null", "terms.varifocal={}"])
    assert differences(parse_recipe(MINIMAL), new) == [
        "terms.focal: {} -> not set",
        "terms.varifocal: not set -> {}",
    ]


def test_the_learning_rate_warms_up_and_falls_twice() -> None:
    schedule = ScheduleRecipe(max_iters=100, lr=1.0, warmup_steps=10, milestones=(0.7, 0.9))
    assert schedule.learning_rate(0) == pytest.approx(0.001)
    # half way from lr / 1000 to lr
    assert schedule.learning_rate(5) == pytest.approx(0.5005)
    assert schedule.learning_rate(10) == 1.0
    assert schedule.learning_rate(69) == 1.0
    assert schedule.learning_rate(70) == pytest.approx(0.1)
    assert schedule.learning_rate(90) == pytest.approx(0.01)


def test_a_path_with_an_unset_variable_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOXSEG_DATA", "/data")
    assert expand_path("$BOXSEG_DATA/weights/a.pth", "model.weights") == Path("/data/weights/a.pth")
    monkeypatch.delenv("BOXSEG_DATA")
    with pytest.raises(ValueError, match=r"variable BOXSEG_DATA is not set.*-o model\.weights="):
        expand_path("${BOXSEG_DATA}/weights/a.pth", "model.weights")


TAUGHT = {**MINIMAL, "teacher": {}, "pseudo_masks": {"quality_aware": {}}}


@pytest.mark.parametrize(
    ("steps", "start", "momentum"),
    # under 10,000 steps: a hard copy at 0.3 of the schedule, a horizon of 3 % of it
    [(1000, 300, 1 - 1 / 30), (9999, 3000, 1 - 1 / 299.97), (10_000, 0, 0.999), (90_000, 0, 0.999)],
)
def test_a_teachers_horizon_follows_the_schedule(steps: int, start: int, momentum: float) -> None:
    teacher = TeacherRecipe()
    assert teacher.start_step(steps) == start
    assert teacher.momentum_of(steps) == pytest.approx(momentum)


def test_a_stated_start_and_momentum_win() -> None:
    teacher = TeacherRecipe(start=0.7, momentum=0.5)
    assert teacher.start_step(1000) == 700
    assert teacher.momentum_of(1000) == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher={}"], "teacher needs pseudo_masks beside it"),
        (["pseudo_masks={quality_aware: {}}"], "pseudo_masks needs teacher beside it"),
        (["copy_paste={peer: {}}"], "copy_paste needs a teacher"),
        (["teacher.start=1"], "teacher.start: "),
        (["teacher.imgsz=[800, 600]"], "teacher.imgsz must be short and long side"),
        (["pseudo_masks={a: {}, b: {}}"], "pseudo_masks must name one method"),
        (["copy_paste=7"], "copy_paste must name one method"),
        (["copy_paste={peer: 7}"], "copy_paste.peer must be a mapping of options, got 7"),
        (["copy_paste={peer: {a: []}}"], "copy_paste.peer.a must be a number or a word"),
        (["view.blur=2"], "view.blur: "),
    ],
)
def test_teacher_settings_that_do_not_fit_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=r"^recipe: .*" + re.escape(message)) as caught:
        parse_recipe(MINIMAL, overrides)
    assert "\n" not in str(caught.value)


def test_teachers_on_coco_see_800_1333_but_those_of_sim_see_the_students_images() -> None:
    found = {
        name: (path, read_recipe(path).teacher)
        for name, path in shipped_recipes().items()
        if path.parent.name == "coco"
    }
    teachers = {name: teacher for name, (_, teacher) in found.items() if teacher is not None}
    own = {name for name, teacher in teachers.items() if teacher.imgsz is None}
    assert own == {name for name in found if name.startswith("sim_")}
    assert all("student's own images" in found[name][0].read_text() for name in own)
    assert {teachers[name].imgsz for name in teachers.keys() - own} == {(800, 1333)}


def test_an_unknown_teacher_setting_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^teacher.begin is not a setting; teacher has: imgsz, m"):
        parse_recipe(MINIMAL, ["teacher.begin=1"])


def test_a_teacher_is_taken_out_by_null() -> None:
    recipe = parse_recipe(TAUGHT, ["teacher=null", "pseudo_masks=null"])
    assert recipe.teacher is None
    assert recipe.pseudo_masks is None


def test_a_method_is_replaced_by_naming_another_and_null() -> None:
    changes = ["pseudo_masks.quality_aware=null", "pseudo_masks.box_teacher={}"]
    assert parse_recipe(TAUGHT, changes).pseudo_masks == {"box_teacher": {}}


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        ([], []),
        (["terms.pairwise.depth_threshold=0"], []),
        (["terms.pairwise.depth_threshold=0.01"], ["terms.pairwise.depth_threshold=0"]),
        (
            ["terms.depth={}", "terms.depth_consistency={}"],
            ["terms.depth=null", "terms.depth_consistency=null"],
        ),
        (["teacher={}", "pseudo_masks={quality_aware: {}}"], []),
        (
            ["teacher={}", "pseudo_masks={quality_aware: {depth_ranking: 0.3}}"],
            ["pseudo_masks.quality_aware.depth_ranking=0"],
        ),
        (
            ["teacher={}", "pseudo_masks={depth_matched: {}}"],
            ["pseudo_masks.depth_matched.depth_weight=0"],
        ),
    ],
)
def test_the_settings_without_depth_are_those_of_the_recipe(
    overrides: list[str], settings: list[str]
) -> None:
    assert settings_without_depth(parse_recipe(MINIMAL, overrides)) == settings


@pytest.mark.parametrize("name", [name for name in known_recipes() if "depth" in name])
def test_a_depth_recipe_with_the_settings_that_are_advised_needs_no_depth(name: str) -> None:
    advised = settings_without_depth(read_recipe(find_recipe(name)))
    assert advised
    recipe = read_recipe(find_recipe(name), advised)
    assert settings_without_depth(recipe) == []
    assert recipe.pseudo_masks is not None
    assert not build_pseudo_masks(recipe.pseudo_masks).needs_depth
