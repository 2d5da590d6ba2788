"""Weight selection in heads: an output channel takes the teacher's channel of the same meaning, or none."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.modules import head as heads

from ultralytics_kd.errors import ModelError
from ultralytics_kd.outputs.output_channels import OutputChannels, keypoint_names
from ultralytics_kd.outputs.weight_selection import select_weights
from ultralytics_kd.teachers.validation import check_keypoints

# Head -> model and arguments of the head in a YAML
KINDS = {
    "Detect": ("DetectionModel", ["nc"]),
    "v10Detect": ("DetectionModel", ["nc"]),
    "Segment": ("SegmentationModel", ["nc", 32, 64]),
    "Segment26": ("SegmentationModel", ["nc", 32, 64]),
    "Pose": ("PoseModel", ["nc", "kpt_shape"]),
    "Pose26": ("PoseModel", ["nc", "kpt_shape"]),
    "OBB": ("OBBModel", ["nc", 1]),
    "OBB26": ("OBBModel", ["nc", 1]),
    "SemanticSegment": ("SemanticSegmentationModel", ["nc"]),
    "Depth": ("DepthModel", [64]),
    "RTDETRDecoder": ("RTDETRDetectionModel", ["nc", 32, 10, 4, 4, 2, 64]),
    "WorldDetect": ("WorldModel", ["nc", 512, False]),
}
CHANGED = -7.0  # of every weight of a student, so that a channel that was taken is seen


def build(head: str, scale: str, nc: int = 3, kpt_shape: tuple[int, int] = (5, 3), reg_max: int = 1) -> Any:
    """Build a small model of a head whose outputs' biases tell the channel, and a student that has none of them."""
    kind, arguments = KINDS[head]
    width = {"n": 0.25, "s": 0.5}[scale]
    levels = [[-1, 1, "Conv", [64, 3, 2]]] + [[-1, 1, "Conv", [128, 3, 2]] for _ in range(4)]
    cfg = {
        "nc": nc,
        "scales": {scale: [1.0, width, 1024]},
        "scale": scale,
        "kpt_shape": list(kpt_shape),
        "end2end": head.endswith("26"),
        "reg_max": reg_max,
        "backbone": levels,
        "head": [[[2, 3, 4][: 2 if head == "SemanticSegment" else 3], 1, head, arguments]],
    }
    model = getattr(tasks, kind)(cfg, nc=nc, verbose=False)
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))):
            if scale == "n":
                layer.weight.fill_(CHANGED)
            if layer.bias is not None:
                layer.bias.copy_(
                    torch.arange(len(layer.bias)) if scale == "s" else torch.full_like(layer.bias, CHANGED)
                )
    return model


def outputs(model: Any, *parts: str) -> list[list[int]]:
    """Return the biases of the last layers of a head's parts, in both branches."""
    head = model.model[-1]
    found = []
    for part in parts:
        for name in (part, f"one2one_{part}"):
            for tower in getattr(head, name, None) or ():
                found.append(
                    [round(b) for b in (tower[-1] if isinstance(tower, nn.Sequential) else tower).bias.tolist()]
                )
    return found


def take(head: str, ours: dict[str, Any] | None = None, theirs: dict[str, Any] | None = None, **matches: Any) -> Any:
    """Return a student that has taken a teacher's weights."""
    student, teacher = build(head, "n", **(ours or {})), build(head, "s", **(theirs or {}))
    assert select_weights(student, teacher, **matches) > 0
    return student


@pytest.mark.core
@pytest.mark.parametrize("head", ["Detect", "v10Detect", "Segment", "Segment26", "Pose26", "OBB"])
def test_class_scores_come_from_the_matched_class_and_others_keep_theirs(head):
    student = take(head, {"nc": 4}, {"nc": 6}, classes={0: 5, 3: 1})
    rows = outputs(student, "cv3")
    assert rows and all(row == [5, CHANGED, CHANGED, 1] for row in rows)
    if head == "Segment26":
        assert student.model[-1].proto.semseg[-1].bias.tolist() == [5, CHANGED, CHANGED, 1]


def test_class_scores_of_semantic_maps_and_of_queries_follow_the_classes_too():
    semantic = take("SemanticSegment", {"nc": 4}, {"nc": 6}, classes={0: 5, 3: 1}).model[-1]
    queries = take("RTDETRDecoder", {"nc": 4}, {"nc": 4}, classes={0: 3, 3: 1}).model[-1]
    for layer in (semantic.classifier[-1], semantic.aux_head[-1]):
        assert layer.bias.tolist() == [5, CHANGED, CHANGED, 1]
    for layer in (queries.enc_score_head, *queries.dec_score_head):
        assert layer.bias.tolist() == [3, CHANGED, CHANGED, 1]
    assert queries.enc_bbox_head.layers[-1].bias.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("head", ["Detect", "SemanticSegment"])
def test_other_numbers_of_classes_without_a_map_take_no_scores(head):
    last = take(head, {"nc": 4}, {"nc": 6}).model[-1]
    layer = last.cv3[0][-1] if head == "Detect" else last.classifier[-1]
    assert set(layer.bias.tolist()) == {CHANGED}


def test_similarity_to_texts_has_no_classes():
    rows = outputs(take("WorldDetect", classes={0: 2}), "cv3")
    assert rows and all(row == list(range(512)) for row in rows)


@pytest.mark.core
@pytest.mark.parametrize("head", ["Pose", "Pose26"])
@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((2, 3), (2, 3), [0, 1, 2, 3, 4, 5]),
        ((2, 2), (2, 3), [0, 1, 3, 4]),
        ((2, 3), (2, 2), [0, 1, CHANGED, 2, 3, CHANGED]),
        ((2, 3), (17, 3), [CHANGED] * 6),
        ((2, 2), (5, 3), [CHANGED] * 4),
        ((5, 3), (2, 3), [CHANGED] * 15),
    ],
)
def test_keypoints_come_from_as_many_and_visibility_only_from_visibility(head, ours, theirs, expected):
    student = take(head, {"kpt_shape": ours}, {"kpt_shape": theirs})
    rows = outputs(student, "cv4_kpts" if head == "Pose26" else "cv4")
    assert rows and all(row == expected for row in rows)
    for row in outputs(student, "cv4_sigma"):  # two for each keypoint
        assert row == (list(range(4)) if ours[0] == theirs[0] else [CHANGED] * 2 * ours[0])


@pytest.mark.core
def test_keypoints_of_one_name_are_matched():
    student, teacher = build("Pose26", "n", kpt_shape=(3, 3)), build("Pose26", "s", kpt_shape=(4, 2))
    teacher.kpt_names = {i: ["nose", "left", "right", "tail"] for i in range(3)}
    select_weights(student, teacher, keypoints=["tail", "hand", "nose"])
    assert outputs(student, "cv4_kpts")[0] == [6, 7, CHANGED, CHANGED, CHANGED, CHANGED, 0, 1, CHANGED]
    assert outputs(student, "cv4_sigma")[0] == [6, 7, CHANGED, CHANGED, 0, 1]


def test_keypoints_without_names_of_their_own_have_none():
    assert keypoint_names({0: ["nose", "tail"], 1: ["nose", "tail"]}) == ["nose", "tail"]
    for unknown in (None, {}, {0: ["0", "1"]}, {0: ["nose"], 1: ["tail"]}, {0: ["tail", "tail"]}):
        assert keypoint_names(unknown) is None


@pytest.mark.parametrize("head", ["OBB", "OBB26"])
def test_boxes_and_angles_come_from_boxes_and_angles(head):
    student = take(head)
    assert all(row == [0, 1, 2, 3] for row in outputs(student, "cv2"))
    assert all(row == [0] for row in outputs(student, "cv4"))


def test_bins_and_angles_of_other_numbers_are_left():
    student, teacher = (build("Detect", scale, reg_max=bins) for scale, bins in (("n", 8), ("s", 16)))
    assert select_weights(student, teacher) == 0  # it says so in the YAML
    channels = OutputChannels(student.model[-1], teacher.model[-1])
    assert channels.rows("cv2.0.2", 32, 64) is None and channels.rows("dfl.conv", 1, 1) is None
    assert OutputChannels(build("OBB", "n").model[-1], build("OBB", "s").model[-1]).rows("cv4.0.2", 1, 2) is None


def give_prototypes(model: Any, count: int) -> None:
    """Let a mask head put out another number of prototypes, each told by its number."""
    head = model.model[-1]
    for tower in (*head.cv4, *(getattr(head, "one2one_cv4", None) or ())):
        tower[-1] = nn.Conv2d(tower[-1].in_channels, count, 1)
        nn.init.constant_(tower[-1].bias, CHANGED)
        if count > 8:
            tower[-1].bias.data.copy_(torch.arange(count))
    head.proto.cv3 = heads.Conv(head.proto.cv2.conv.out_channels, count)
    head.proto.cv3.bn.bias.data.copy_(torch.arange(count) if count > 8 else torch.full((count,), CHANGED))


@pytest.mark.parametrize("head", ["Segment", "Segment26"])
def test_mask_coefficients_and_prototypes_are_taken_in_pairs_or_not_at_all(head):
    pairs = [(build(head, "n"), build(head, "s")) for _ in range(2)]
    for student, teacher in pairs:
        give_prototypes(student, 8)
        give_prototypes(teacher, 32)
    pairs[1][1].model[-1].proto.cv3.conv.kernel_size = (3, 3)  # prototypes that the student cannot take
    for (student, teacher), taken in zip(pairs, ([0, 4, 8, 12, 16, 20, 24, 28], [CHANGED] * 8)):
        assert select_weights(student, teacher) > 0
        assert all(row == taken for row in outputs(student, "cv4"))
        assert student.model[-1].proto.cv3.bn.bias.tolist() == taken


def test_depth_comes_from_depth_and_outputs_of_a_fused_teacher_are_left():
    assert take("Depth", {"nc": 1}, {"nc": 1}).model[-1].head[-1].bias.tolist() == [0]
    fused = build("Detect", "s").fuse(
        verbose=False
    )  # its hidden layers do not fit, and without them outputs mean nothing
    assert select_weights(build("Detect", "n"), fused) == 0


def test_a_classifier_takes_the_rows_of_its_classes():
    cfg = {"scales": {"n": [1.0, 0.25, 1024], "s": [1.0, 0.5, 1024]}, "backbone": [[-1, 1, "Conv", [64, 3, 2]]]}
    cfg["head"] = [[-1, 1, "Classify", ["nc"]]]
    student, teacher = (
        tasks.ClassificationModel({**cfg, "nc": nc, "scale": scale}, nc=nc, verbose=False)
        for nc, scale in ((3, "n"), (6, "s"))
    )
    nn.init.zeros_(student.model[-1].linear.bias)
    teacher.model[-1].linear.bias.data.copy_(torch.arange(6))
    select_weights(student, teacher, {1: 5})
    assert student.model[-1].linear.bias.tolist() == [0, 5, 0]


@pytest.mark.parametrize("theirs, refused", [(["nose", "right", "left"], True), (["nose", "left", "right"], False),
                                             (["n", "l", "r"], False), (None, False)])  # fmt: skip
def test_a_teacher_with_keypoints_in_another_order_is_refused(theirs, refused):
    teacher = SimpleNamespace(source="t.pt", original=SimpleNamespace(kpt_names=theirs and {0: theirs}))
    message = "has the keypoint 'left' in place 2, the data in place 1"
    with pytest.raises(ModelError, match=message) if refused else nullcontext():
        check_keypoints(teacher, ["nose", "left", "right"])
