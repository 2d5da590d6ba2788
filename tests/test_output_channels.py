"""Output channels of a head are copied from those of equal meaning, or not at all (`kd_init`).

Every output layer of the teacher has biases that tell their channel: the bias of channel i is i + 1.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import ClassificationModel, DetectionModel, OBBModel, PoseModel, SegmentationModel

from ultralytics_kd.outputs.output_channels import keypoint_names
from ultralytics_kd.outputs.weight_selection import select_weights


def numbered(model):
    """Let every output layer of a model's head tell its channels."""
    for module in model.model[-1].modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            with torch.no_grad():
                module.bias.copy_(torch.arange(len(module.bias)) + 1.0)
    return model


def pose(scale: str, points: int, values: int, names: list[str] | None = None, nc: int = 1) -> PoseModel:
    """Return a pose model of so many keypoints with 2 or 3 values."""
    model = PoseModel(f"yolo26{scale}-pose.yaml", nc=nc, data_kpt_shape=(points, values), verbose=False)
    if names:
        model.kpt_names = dict.fromkeys(range(nc), names)
    return model


def biases(model, part: str) -> list[list[int]]:
    """Return the biases of the last layers of a part of the head, one list for each level; 0 if they tell nothing."""
    towers = getattr(model.model[-1], part)
    lasts = [tower if isinstance(tower, nn.Conv2d) else list(tower.modules())[-1] for tower in towers]
    return [[round(float(b)) for b in last.bias] for last in lasts]


@pytest.mark.core
def test_other_keypoints_without_names_are_not_copied():
    student, teacher = pose("n", 5, 3), numbered(pose("s", 17, 3))
    before = {k: v.clone() for k, v in student.model[-1].state_dict().items() if "cv4" in k}
    assert select_weights(student, teacher) > 0
    after = student.model[-1].state_dict()
    last = [k for k in before if k.startswith(("cv4_kpts", "one2one_cv4_kpts"))]
    assert last and all(torch.equal(after[k], before[k]) for k in last)


@pytest.mark.core
def test_keypoints_of_one_name_are_copied_wherever_they_stand():
    ours, theirs = ["nose", "tail", "ear"], ["ear", "eye", "nose"]
    student = pose("n", 3, 3)
    select_weights(student, numbered(pose("s", 3, 3, theirs)), keypoints=ours)
    for level in biases(student, "cv4_kpts"):
        assert level[0:3] == [7, 8, 9] and level[6:9] == [1, 2, 3]  # nose and ear: x, y and visibility
        assert not set(level[3:6]) & set(range(1, 10))  # nobody knows the tail


@pytest.mark.nightly
@pytest.mark.parametrize("student_values, teacher_values", [(2, 3), (3, 2)])
def test_visibility_is_left_out_where_only_one_model_has_it(student_values, teacher_values):
    student = pose("n", 4, student_values)
    select_weights(student, numbered(pose("s", 4, teacher_values)))
    for level in biases(student, "cv4_kpts"):
        for point in range(4):
            x_y = level[point * student_values : point * student_values + 2]
            assert x_y == [point * teacher_values + 1, point * teacher_values + 2]
            if student_values == 3:
                assert level[point * 3 + 2] not in range(1, 13)


@pytest.mark.core
def test_classes_follow_their_map_and_others_stay_as_they_are():
    student = DetectionModel("yolo26n.yaml", nc=3, verbose=False)
    teacher = numbered(DetectionModel("yolo26s.yaml", nc=5, verbose=False))
    initial = biases(student, "cv3")
    select_weights(student, teacher, {0: 4, 2: 1})
    for part in ("cv3", "one2one_cv3"):
        for level, before in zip(biases(student, part), initial):
            assert level == [5, before[1], 2]


@pytest.mark.core
@pytest.mark.parametrize(
    "kind, cfg, part", [(OBBModel, "yolo26{}-obb.yaml", "cv4"), (SegmentationModel, "yolo26{}-seg.yaml", "cv4")]
)
def test_angles_and_mask_coefficients_keep_their_places(kind, cfg, part):
    student = kind(cfg.format("n"), nc=2, verbose=False)
    teacher = numbered(kind(cfg.format("s"), nc=2, verbose=False))
    select_weights(student, teacher)
    for level in biases(student, "cv4"):
        assert level == [i + 1 for i in range(len(level))]


@pytest.mark.nightly
def test_a_classifier_takes_the_rows_of_its_classes():
    student = ClassificationModel("yolo26n-cls.yaml", nc=3, verbose=False)
    teacher = numbered(ClassificationModel("yolo26s-cls.yaml", nc=6, verbose=False))
    student.model[-1].linear.bias.data.zero_()
    select_weights(student, teacher, {1: 5})
    assert student.model[-1].linear.bias.tolist() == [0, 6, 0]


@pytest.mark.parametrize(
    "names, known",
    [
        ({0: ["a", "b"]}, ["a", "b"]),
        ({0: ["a", "b"], 1: ["a", "b"]}, ["a", "b"]),
        ({0: ["a", "b"], 1: ["a", "c"]}, None),
        ({0: ["0", "1"]}, None),  # as Ultralytics numbers those without names
        ({0: ["a", "a"]}, None),
        (None, None),
    ],
)
def test_names_of_keypoints_count_only_if_they_tell_them_apart(names, known):
    assert keypoint_names(names) == known
