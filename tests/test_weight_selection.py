"""Weight selection: what a student takes of its teacher's weights."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import NAMES, save_model
from task_models import task_model
from torch import nn
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import DetectionModel, yaml_model_load
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO
from ultralytics_kd.errors import KDError
from ultralytics_kd.outputs import weight_selection
from ultralytics_kd.outputs.channel_importance import Importance
from ultralytics_kd.outputs.channel_picks import Picks, evenly
from ultralytics_kd.outputs.weight_selection import as_big_alike, select_weights


def build(cfg: str | dict, seed: int, nc: int = 3) -> DetectionModel:
    """Build a model whose BatchNorms have statistics worth taking."""
    torch.manual_seed(seed)
    model = DetectionModel(cfg, nc=nc, verbose=False)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
    return model.eval()


def conv_outputs(model: DetectionModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what each convolution with a norm puts out, behind its activation."""
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: outputs.__setitem__(name, out))
        for name, module in model.named_modules()
        if isinstance(module, Conv)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return outputs


def random_importance(teacher: DetectionModel) -> dict[str, Importance]:
    """Return an importance for each output channel of each convolution."""
    convs = {name: m.out_channels for name, m in teacher.named_modules() if isinstance(m, nn.Conv2d)}
    return {name: Importance(torch.rand(count), torch.eye(count)) for name, count in convs.items()}


def take(student: DetectionModel, teacher: DetectionModel, importance: dict[str, Importance] | None) -> int:
    """Select weights, the channels by their importance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_selection, "Picks", lambda *models: Picks(*models[:2], importance))
        return select_weights(student, teacher)


def silence_what_is_not_shared(student: DetectionModel, teacher: DetectionModel, picks: Picks) -> None:
    """Let both models' convolutions ignore what only one of them has, so that the rest can be compared.

    The teacher ignores channels that the student does not take, and blocks that the student does not have; both ignore
    blocks of another type.
    """
    for name, module in student.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1 and picks.alike(name):
            ignored = torch.ones(picks.teacher[name].in_channels, dtype=torch.bool)
            ignored[picks.of(name)[1]] = False
            picks.teacher[name].weight.data[:, ignored] = 0
    for ours, theirs in zip(student.model, teacher.model):
        if isinstance(getattr(ours, "m", None), nn.ModuleList) and type(ours.m[0]) is not type(theirs.m[0]):
            for block in (ours, theirs):
                block.cv2.conv.weight.data[:, 2 * block.c :] = 0
        elif isinstance(getattr(ours, "m", None), nn.Sequential):  # attention blocks, each x + f(x)
            for extra in theirs.m[len(ours.m) :]:
                for norm in (extra.attn.proj.bn, extra.ffn[-1].bn):
                    nn.init.zeros_(norm.weight)
                    nn.init.zeros_(norm.bias)


@pytest.mark.core
@pytest.mark.parametrize(
    ("student", "teacher", "share"),
    [
        ("yolo26n.yaml", "yolo26s.yaml", 1.0),
        ("yolo26n.yaml", "yolo26m.yaml", 0.99),
        pytest.param("yolo26n.yaml", "yolo26x.yaml", 0.99, marks=pytest.mark.nightly),
        pytest.param("yolo26s.yaml", "yolo26l.yaml", 0.99, marks=pytest.mark.nightly),
        ("yolo11n.yaml", "yolo11m.yaml", 0.96),
        ("yolo12n.yaml", "yolo12s.yaml", 1.0),
        pytest.param("yolov8n.yaml", "yolov8x.yaml", 1.0, marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("evenly_spaced", [pytest.param(True, marks=pytest.mark.nightly), False])
def test_the_student_computes_what_the_teacher_would_with_the_channels_taken(student, teacher, share, evenly_spaced):
    ours, theirs = build(student, 0), build(teacher, 1)
    importance = None if evenly_spaced else random_importance(theirs)
    taken, total = take(ours, theirs, importance), sum(p.numel() for p in ours.parameters())
    assert share * total <= taken <= total
    picks = Picks(ours, theirs, importance)
    silence_what_is_not_shared(ours, theirs, picks)
    images = torch.rand(1, 3, 128, 128)
    own, its = conv_outputs(ours, images), conv_outputs(theirs, images)
    compared = [
        name for name in own if picks.alike(name)
    ]  # hidden ones; output layers are scaled, as they have no norm
    for name in compared:
        output, wanted = own[name], its[name][:, picks.of(f"{name}.conv")[0]]
        torch.testing.assert_close(output, wanted, rtol=1e-3, atol=1e-4 * float(output.abs().max()))
    assert len(compared) > 0.8 * len(own) and any(
        name.startswith(f"model.{len(ours.model) - 1}.cv3") for name in compared
    )


def test_a_smaller_teacher_gives_nothing():
    assert select_weights(build("yolo26s.yaml", 0), build("yolo26n.yaml", 1)) == 0


@pytest.mark.parametrize(
    "student, teacher, given",
    [
        ("yolov8m", "yolov8l", False),
        ("yolov8m", "yolov8x", True),
        ("yolov8s", "yolov8m", True),
        ("yolo26n", "yolo26s", True),
    ],
)
def test_a_teacher_with_a_narrower_layer_gives_nothing(student, teacher, given):
    """YOLOv8m has more channels at its coarsest level than YOLOv8l, and layers that read them would stay random."""
    models = [DetectionModel(f"{name}.yaml", verbose=False) for name in (student, teacher)]
    assert as_big_alike(*models) is given


def test_a_deeper_teacher_of_the_same_width_is_not_of_the_same_size(caplog):
    models = []
    for depth in (0.33, 1.0):
        cfg = {**yaml_model_load("yolov5n.yaml"), "scales": {"n": [depth, 0.125, 1024]}, "scale": "n", "nc": 3}
        torch.manual_seed(0)
        models.append(DetectionModel(cfg, verbose=False))
    assert select_weights(*models, images=torch.rand(2, 3, 64, 64))
    assert "convolutions fitted" in caplog.text and "has the student's size" not in caplog.text


@pytest.mark.parametrize("images", [None, torch.rand(2, 3, 64, 64)])
def test_a_teacher_of_the_same_size_is_copied_and_not_refitted(images, caplog):
    ours, theirs = build("yolo26n.yaml", 0), build("yolo26n.yaml", 1)
    assert select_weights(ours, theirs, images=images) == sum(p.numel() for p in ours.parameters())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))
    assert ("copied and not refitted" in caplog.text) is (images is not None)


@pytest.mark.parametrize("classes", [{0: 1}, {0: 1, 3: 4}])
def test_a_teacher_of_the_same_size_gives_the_classes_that_it_knows(classes):
    ours, theirs = build("yolo26n.yaml", 0, nc=4), build("yolo26n.yaml", 1, nc=5)
    before = ours.model[-1].cv3[0][-1].weight.clone()
    assert select_weights(ours, theirs, classes)
    own, its = (m.model[-1].cv3[0][-1].weight for m in (ours, theirs))
    assert all(torch.equal(own[i], its[classes[i]] if i in classes else before[i]) for i in range(4))
    assert torch.equal(ours.model[16].cv2.conv.weight, theirs.model[16].cv2.conv.weight)


def test_a_fused_teacher_gives_what_has_no_norm():
    ours, theirs = build("yolo11n.yaml", 0), build("yolo11s.yaml", 1).fuse(verbose=False)
    before = ours.model[0].conv.weight.clone()
    assert select_weights(ours, theirs) < 0.1 * sum(p.numel() for p in ours.parameters())
    assert torch.equal(ours.model[0].conv.weight, before)


def test_concatenated_channels_of_unequal_shares_are_followed_to_their_sources():
    # m has 512 channels where n has 256, and 512 where n has 128: evenly spaced ones of the 1024 would mix them up
    ours, theirs = build("yolo26n.yaml", 0), build("yolo26m.yaml", 1)
    expected = torch.cat([evenly(256, 512), 512 + evenly(128, 512)])
    assert torch.equal(Picks(ours, theirs).of("model.13.cv1.conv")[1], expected)


@pytest.mark.parametrize("cfgs", [("yolov5n.yaml", "yolov5s.yaml"), ("yolov8n-ghost.yaml", "yolov8n-ghost.yaml")])
@pytest.mark.parametrize("images", [None, torch.rand(2, 3, 64, 64)], ids=["selected", "fitted"])
def test_layers_that_put_their_parts_together_in_another_way_are_taken_too(cfgs, images):
    """The output of C3 and GhostConv is not that of a convolution named cv2."""
    student, teacher = (build(cfg, seed) for seed, cfg in enumerate(cfgs))
    assert select_weights(student, teacher, images=images) == sum(p.numel() for p in student.parameters())
    if cfgs[0] == cfgs[1]:
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(student(x)[0], teacher(x)[0])


def test_the_bins_of_dfl_stay_as_they_are():
    student, teacher = build("yolo11n.yaml", 0), build("yolo11s.yaml", 1)
    select_weights(student, teacher, images=torch.rand(2, 3, 64, 64), fit=True)
    assert student.model[-1].dfl.conv.weight.flatten().tolist() == list(range(16))


def test_factors_of_blocks_are_taken_with_their_channels():
    models = [build("yolo12l.yaml", seed) for seed in (0, 1)]
    for name, parameter in models[1].named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    assert select_weights(*models) == sum(p.numel() for p in models[0].parameters())
    factors = [[p for n, p in model.named_parameters() if n.endswith("gamma")] for model in models]
    assert len(factors[0]) == 2 and all(torch.equal(*pair) for pair in zip(*factors))


class Own(nn.Module):
    """A block with a norm of its own behind two convolutions."""

    def __init__(self, width):
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width // 2), Conv(width, width // 2)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return self.norm(torch.cat((self.cv1(x), self.cv2(x)), 1))


@pytest.mark.parametrize("scales", ["nn", "ns"])
def test_a_block_with_norms_of_its_own_is_taken_whole_or_not_at_all(scales):
    models = [build(f"yolo26{scale}.yaml", seed) for seed, scale in enumerate(scales)]
    for model in models:
        first = model.model[0]
        block = nn.Sequential(first, Own(first.conv.out_channels))
        block.i, block.f, block.type, block.np = first.i, first.f, "Own", 0
        model.model[0] = block
        nn.init.uniform_(block[1].norm.running_mean)
    before = [p.clone() for p in models[0].model[0].parameters()]
    select_weights(*models)
    own, theirs = (m.model[0].state_dict() for m in models)
    if scales == "nn":
        assert all(torch.equal(own[name], theirs[name]) for name in own)
    else:
        assert all(torch.equal(*pair) for pair in zip(before, models[0].model[0].parameters()))


def test_attention_takes_whole_heads():
    ours, theirs = build("yolo26n.yaml", 0), build("yolo26s.yaml", 1)  # 2 heads of 4, each 32 + 32 + 64 channels
    rows, _ = Picks(ours, theirs).of("model.10.m.0.attn.qkv.conv")
    assert torch.equal(rows, torch.cat([torch.arange(128), 256 + torch.arange(128)]))


def test_attention_with_heads_of_unequal_width_takes_evenly_spaced_channels():
    narrow = yaml_model_load("yolo26n.yaml")
    narrow["scales"] = {**narrow["scales"], "n": [0.5, 0.1875, 1024]}
    student, teacher = build(narrow, 0), build("yolo26s.yaml", 1)
    ours, theirs = (model.model[10].m[0].attn for model in (student, teacher))
    assert (ours.num_heads, ours.head_dim, theirs.num_heads, theirs.head_dim) == (1, 96, 4, 64)
    assert select_weights(student, teacher)
    for name, groups in (("qkv", 1), ("proj", 1), ("pe", 96)):
        mine, its = getattr(ours, name).conv.weight, getattr(theirs, name).conv.weight
        expected = its[evenly(mine.shape[0], its.shape[0])]
        torch.testing.assert_close(mine, expected if groups > 1 else expected[:, evenly(mine.shape[1], its.shape[1])])


def test_the_teacher_is_not_changed_and_another_architecture_gives_nothing():
    teacher = build("yolo11s.yaml", 1)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    student = build("yolo26n.yaml", 0)
    untouched = {k: v.clone() for k, v in student.state_dict().items()}
    assert select_weights(student, teacher) == 0
    assert all(torch.equal(v, untouched[k]) for k, v in student.state_dict().items())
    select_weights(build("yolo11n.yaml", 0), teacher)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_class_scores_are_taken_from_the_matching_classes():
    teacher, other = build("yolo26s.yaml", 1), build("yolo26s.yaml", 1, nc=4)
    for ours, theirs in zip(teacher.model[-1].cv3, other.model[-1].cv3):  # 2, 0, 1 and one more
        theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if not k.startswith("2.")}, strict=False)
        theirs[-1].weight.data[:3], theirs[-1].bias.data[:3] = ours[-1].weight[[2, 0, 1]], ours[-1].bias[[2, 0, 1]]
    straight, mapped, part = (build("yolo26n.yaml", seed) for seed in (0, 0, 0))
    before = part.model[-1].cv3[0][-1].weight.clone()
    select_weights(straight, teacher)
    select_weights(mapped, other, {0: 1, 1: 2, 2: 0})
    select_weights(part, other, {1: 2})
    expected, got, some = (m.model[-1].cv3[0][-1] for m in (straight, mapped, part))
    assert torch.equal(got.weight, expected.weight) and torch.equal(got.bias, expected.bias)
    assert torch.equal(some.weight[1], expected.weight[1]) and torch.equal(some.weight[[0, 2]], before[[0, 2]])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """Return the path of a bigger model of the student's architecture."""
    torch.manual_seed(0)
    return str(save_model(tmp_path_factory.mktemp("teacher") / "teacher.pt", "yolo26s.yaml"))


def first_weights(quick, teacher, model="yolo26n.yaml", **kd) -> tuple[dict[str, torch.Tensor], str]:
    """Return a student's weights as its training begins."""
    seen: dict[str, torch.Tensor] = {}
    student = YOLO(model)
    student.add_callback(
        "on_train_start", lambda t: seen.update({k: v.clone() for k, v in t.model.state_dict().items()})
    )
    student.train(**{**quick, "epochs": 1}, teacher=teacher, val=False, **kd)
    return seen, student.trainer


@pytest.mark.core
@pytest.mark.slow
def test_an_untrained_student_begins_with_the_teachers_weights_and_says_so(quick, teacher, caplog):
    seen, _ = first_weights(quick, teacher)
    stem = torch_load(teacher)["model"].state_dict()["model.0.conv.weight"].float()
    assert torch.equal(seen["model.0.conv.weight"], stem[::2])
    assert "2,504,970 of 2,504,970 parameters are from the teacher (kd_init)" in caplog.text


@pytest.mark.slow
def test_kd_init_false_leaves_the_students_random_weights(quick, teacher, caplog):
    seen, _ = first_weights(quick, teacher, kd_init=False)
    stem = torch_load(teacher)["model"].state_dict()["model.0.conv.weight"].float()
    assert not torch.equal(seen["model.0.conv.weight"], stem[::2])
    assert "random (kd_init=False)" in caplog.text


@pytest.mark.nightly
def test_a_trained_student_keeps_its_weights(quick, teacher, tmp_path, caplog):
    own = save_model(tmp_path / "own.pt")
    seen, _ = first_weights(quick, teacher, model=str(own))
    assert torch.equal(seen["model.0.conv.weight"], torch_load(own)["model"].state_dict()["model.0.conv.weight"])
    assert "the student's own" in caplog.text
    scratch, _ = first_weights({**quick, "name": "scratch"}, teacher, model=str(own), pretrained=False)
    assert not torch.equal(scratch["model.0.conv.weight"], seen["model.0.conv.weight"])


@pytest.mark.nightly
def test_a_resumed_student_goes_on_with_its_own_weights(quick, teacher, caplog):
    student = YOLO("yolo26n.yaml")

    def stop(trainer):
        trainer.stop = True

    student.add_callback("on_fit_epoch_end", stop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ultralytics.engine.trainer.strip_optimizer", lambda *_, **__: {})
        student.train(**{**quick, "epochs": 3}, teacher=teacher, val=False)
    caplog.clear()
    YOLO(student.trainer.last).train(resume=True)
    assert "those of the interrupted run" in caplog.text


@pytest.mark.slow
def test_a_teacher_of_another_family_begins_nothing(quick, tmp_path, caplog):
    first_weights(quick, str(save_model(tmp_path / "t.pt", "yolo11s.yaml", NAMES)))
    text = " ".join(caplog.text.split())
    assert "random (kd_init: the teacher is no model of the same kind, as big or bigger, or is fused)" in text


@pytest.mark.parametrize("value", ["maybe", [], {}], ids=str)
def test_kd_init_is_true_false_or_the_name_of_a_way(quick, teacher, value):
    with pytest.raises(KDError, match=re.escape(f"kd_init={value}")):
        YOLO("yolo26n.yaml").train(**quick, teacher=teacher, kd_init=value)


def test_a_teacher_of_an_older_release_gives_its_weights_too():
    """Such a file names the channels of its images `ch`."""
    student, teacher = build("yolo11n.yaml", 0), build("yolo11s.yaml", 1)
    teacher.yaml["ch"] = teacher.yaml.pop("channels")
    assert select_weights(student, teacher) > 0
    teacher.yaml["ch"] = 1
    assert select_weights(build("yolo11n.yaml", 0), teacher) == 0


def test_a_fused_teacher_gives_no_weights():
    teacher = task_model("depth", "yolo26s")
    teacher.fuse(verbose=False)
    assert select_weights(task_model("depth"), teacher) == 0


def test_the_calibration_of_depth_comes_with_the_weights():
    student, teacher = task_model("depth"), task_model("depth", "yolo26s")
    student.model[-1].cal_a.fill_(0.8), student.model[-1].cal_b.fill_(1.2)
    teacher.model[-1].cal_b.fill_(0.3)
    assert select_weights(student, teacher) > 0
    assert (student.model[-1].cal_a.item(), student.model[-1].cal_b.item()) == (1.0, pytest.approx(0.3))
