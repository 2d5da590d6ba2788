"""Losses of the user's own code: imported, checked, trained with and resumed."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from task_models import task_model
from test_training import results
from torch import nn
from ultralytics.utils.loss import v8ClassificationLoss

from ultralytics_kd import YOLO, KDError
from ultralytics_kd.config.checks import check_combination, check_user_losses, check_values
from ultralytics_kd.config.user_code import import_object
from ultralytics_kd.distillation.loss import DistillationLoss
from ultralytics_kd.distillation.pairs import DensePair, FeaturePair
from ultralytics_kd.distillation.terms.dense import ImageTerm, PixelTerm
from ultralytics_kd.distillation.terms.detection import BoxTerm, ClassTerm
from ultralytics_kd.distillation.terms.feature import FeatureTerm
from ultralytics_kd.distillation.terms.named_losses import checked
from ultralytics_kd.outputs import FeatureLayout, Layout

EXAMPLES = Path(__file__).parents[1] / "examples"
MODULE = """
import torch
from torch import nn
not_callable = 3
def squared(student, teacher):
    assert student.shape == teacher.shape and student.dtype == torch.float32 and not teacher.requires_grad
    return (student - teacher).square().mean()
def lazy(student, teacher):
    from my_helper import double
    return double(squared(student, teacher))
def map_(student, teacher):
    return (student - teacher).square()
def number(student, teacher):
    return 1.0
def boxes(student, teacher, weight, avg_factor):
    assert student.dtype == torch.float32 and student.shape[:-1] == weight.shape and not teacher.requires_grad
    return ((student - teacher).abs().mean(-1) * weight).sum() / avg_factor
def scores(student, teacher, avg_factor):
    return (student - teacher).square().sum() / avg_factor
def number_of_classes(student, teacher):
    assert student.shape == teacher.shape
    return torch.tensor(float(student.shape[1]))
class Plain:
    def __init__(self, student, teacher):
        pass
class Needy(nn.Module):
    def __init__(self, student):
        super().__init__()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write the module into the working folder, and forget it afterwards."""
    (tmp_path / "my_losses.py").write_text(MODULE)
    shutil.copy2(EXAMPLES / "own_loss.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield
    for name in ("my_losses", "own_loss", "my_helper"):
        sys.modules.pop(name, None)


def term(loss: str, student: int = 4, teacher: int = 6) -> FeatureTerm:
    return FeatureTerm(loss, None, FeatureLayout((8,), (student,)), [FeatureLayout((8,), (teacher,))])


def pair(student: int = 4, teacher: int = 6) -> FeaturePair:
    torch.manual_seed(0)
    return FeaturePair([torch.rand(2, student, 8, 8, requires_grad=True)], [[torch.rand(2, teacher, 8, 8)]])


def test_function_is_given_adapted_features_and_its_value_is_the_term(own):
    seen = pair()
    made = term("my_losses:squared")
    expected = (made.adapters[0](seen.student[0]) - seen.teachers[0][0]).square().mean()
    value = made(seen)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert seen.student[0].grad.abs().sum() > 0 and made.adapters[0].weight.grad.abs().sum() > 0


def test_a_class_makes_a_module_for_every_level_which_trains(own):
    layout = FeatureLayout((8, 16), (4, 5))
    made = FeatureTerm("own_loss:Relations", None, layout, [FeatureLayout((8, 16), (6, 7))])
    assert [(m.project.in_channels, m.project.out_channels) for m in made.adapters] == [(4, 6), (5, 7)]
    torch.manual_seed(0)
    student = [torch.rand(2, c, 8, 8, requires_grad=True) for c in (4, 5)]
    seen = FeaturePair(student, [[torch.rand(2, c, 8, 8) for c in (6, 7)]])
    optimizer = torch.optim.Adam(made.adapters.parameters(), lr=0.01)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        values.append(made(seen))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.9 * values[0]


def test_losses_of_the_example_are_zero_for_equal_features(own):
    cosine, kind = (import_object("kd_feat_loss", f"own_loss:{name}") for name in ("cosine", "Relations"))
    features = torch.rand(2, 4, 16, 16)
    loss = kind(4, 4)
    nn.init.dirac_(loss.project.weight)
    assert cosine(features, 3 * features) == pytest.approx(0, abs=1e-6)
    assert loss(features, 3 * features).item() == pytest.approx(0, abs=1e-6)
    assert cosine(features, -features) == pytest.approx(2, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        ("nowhere:loss", "kd_feat_loss=nowhere:loss names no object that can be imported"),
        ("my_losses:gone", "kd_feat_loss=my_losses:gone names no object that can be imported"),
        ("my_losses:not_callable", "is neither a function nor a class, but a int"),
        ("my_losses:Plain", "makes a Plain: a class must be an nn.Module"),
        ("my_losses:Needy", "the code of kd_feat_loss=my_losses:Needy raised TypeError"),
    ],
)
def test_an_unusable_feature_loss_is_one_sentence(loss, sentence, own):
    with pytest.raises(KDError, match=re.escape(sentence)):
        term(loss)


def test_what_the_users_code_imports_later_is_found_and_its_errors_are_named(own, tmp_path):
    (tmp_path / "my_helper.py").write_text("def double(x):\n    return 2 * x\n")
    with pytest.raises(KDError, match=r"raised AttributeError: .* has no attribute .Foo"):
        import_object("teacher", "my_losses:nn", lambda module: module.Foo())
    seen = pair()
    made = term("my_losses:lazy")
    torch.testing.assert_close(
        made(seen), 2 * (made.adapters[0](seen.student[0]) - seen.teachers[0][0]).square().mean()
    )


def boxes(*weights: float) -> dict:
    """Return what a box term sees of a pair: N boxes of student and teacher, and their weights."""
    torch.manual_seed(0)
    corner, size = torch.rand(2, len(weights), 2) * 10, torch.rand(2, len(weights), 2) * 5 + 1
    student, teacher = torch.cat((corner, corner + size), -1)
    return {
        "student_boxes": student.requires_grad_(),
        "teacher_boxes": teacher,
        "student_scores": torch.randn(len(weights), 3, requires_grad=True),
        "teacher_scores": torch.randn(len(weights), 3),
        "box_weight": torch.tensor(weights),
        "avg_factor": torch.tensor(2.0),
    }


def test_box_and_class_losses_are_called_with_what_the_built_in_ones_get(own):
    seen = SimpleNamespace(**boxes(0.0, 0.5, 1.0))
    layout = Layout((8,), (4,), 3, 1, ("one2many",))
    value = BoxTerm("my_losses:boxes", 7.0, layout, [layout])(seen)
    torch.testing.assert_close(value, BoxTerm("l1", None, layout, [layout])(seen))
    value.backward()
    assert not seen.student_boxes.grad[0].any() and seen.student_boxes.grad[1:].any()
    value = ClassTerm("my_losses:scores", None)(seen)
    torch.testing.assert_close(value, (seen.student_scores - seen.teacher_scores).square().sum() / 2)
    rotated = Layout((8,), (4,), 3, 1, ("one2many",), "obb")
    turned = SimpleNamespace(**{**vars(seen), "student_boxes": torch.rand(3, 5), "teacher_boxes": torch.rand(3, 5)})
    expected = (turned.student_boxes - turned.teacher_boxes).abs().mean(-1) @ turned.box_weight / 2
    torch.testing.assert_close(BoxTerm("my_losses:boxes", None, rotated, [rotated])(turned), expected)


@pytest.mark.parametrize(
    ("task", "kind", "shape"), [("classify", ImageTerm, (2, 3)), ("semantic", PixelTerm, (2, 3, 4, 4))]
)
def test_class_losses_of_other_tasks_get_the_logits(own, task, kind, shape):
    student, teacher = torch.randn(2, *shape)
    value = kind("my_losses:number_of_classes", None)(DensePair(student, teacher))
    assert value == 3
    check_combination({"teacher": "t.pt", "task": task, "kd_cls": 1.0, "kd_cls_loss": "my_losses:number_of_classes"})


@pytest.mark.parametrize("argument", ["kd_cls_loss", "kd_box_loss"])
def test_an_unusable_class_or_box_loss_is_one_sentence(own, argument):
    for name, sentence in (
        ("nowhere:loss", "names no object that can be imported"),
        ("my_losses:not_callable", "is neither a function nor a class"),
        ("my_losses:Plain", "is a class: give a function"),
    ):
        cfg = {"task": "detect", "kd_cls": 1.0, "kd_box": 1.0, argument: name}
        with pytest.raises(KDError, match=f"{argument}={name} {sentence}"):
            check_user_losses(cfg)
        check_user_losses({**cfg, argument.removesuffix("_loss"): 0.0})  # the term is off


def test_box_loss_of_the_users_is_trained_with(own, quick, teacher):
    YOLO("yolo26n.yaml").train(**{**quick, "epochs": 1}, teacher=teacher, kd_box_loss="my_losses:boxes")
    run = Path(quick["project"]) / "run"
    assert results(run)[0]["train/kd_box"] > 0
    assert "kd_box_loss: my_losses:boxes" in (run / "args.yaml").read_text()


@pytest.mark.parametrize(("loss", "kind"), [("map_", "a tensor of shape (2, 6, 8, 8)"), ("number", "float")])
def test_a_loss_that_returns_no_scalar_is_one_sentence(loss, kind, own):
    with pytest.raises(KDError, match=re.escape(f"my_losses:{loss} returns {kind}: it must return a scalar tensor")):
        term(f"my_losses:{loss}")(pair())


def test_a_loss_of_other_arguments_is_named_and_an_error_inside_one_is_the_users():
    def other() -> None: ...

    def inner(*_: object) -> None:
        other(1)

    with pytest.raises(KDError, match=r"^kd_box_loss=mine:other does not take the 4 arguments .*takes 0 positional"):
        checked("kd_box_loss", "mine:other", other)(1, 2, 3, 4)
    with pytest.raises(TypeError, match="takes 0 positional arguments but 1 was given") as error:
        checked("kd_box_loss", "mine:inner", inner)(1, 2, 3, 4)
    assert not isinstance(error.value, KDError)


@pytest.mark.parametrize("value", ["my loss:f", "module:", ":f", "a.b:c d", "pkdd", lambda s, t: 0])
def test_a_value_that_names_no_object_is_refused(value):
    with pytest.raises(KDError, match="valid ones are pkd, cwd, mgd, sl2, crosskd, and module:name of your own"):
        check_values({"kd_feat_loss": value})


def test_unknown_loss_ends_a_training_before_anything_is_written(own, quick, teacher):
    with pytest.raises(KDError, match="names no object"):
        YOLO("yolo26n.yaml").train(**quick, teacher=teacher, kd_feat=1.0, kd_feat_loss="nowhere:loss")
    assert not Path(quick["project"]).exists()


def test_own_loss_with_parameters_is_trained_with_and_resumed(own, quick, teacher, tmp_path):
    """Its name is in args.yaml, its weights in the checkpoint until the run ends."""
    model, kept = YOLO("yolo26n.yaml"), tmp_path / "kept.pt"
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, kept))
    model.train(**quick, teacher=teacher, kd_feat=1.0, kd_feat_loss="own_loss:Relations")
    run = Path(quick["project"]) / "run"
    assert [row["train/kd_feat"] > 0 for row in results(run)] == [True, True]
    assert "kd_feat_loss: own_loss:Relations" in (run / "args.yaml").read_text()
    resumed = YOLO(kept)
    seen = {}
    saved = torch.load(kept, weights_only=False)["optimizer"]["kd_adapters"]

    def look(trainer):
        state = trainer.distiller.adapters.state_dict()
        seen["same"] = bool(saved) and all(torch.equal(state[k], v) for k, v in saved.items())

    resumed.add_callback("on_pretrain_routine_end", look)
    resumed.train(resume=True)
    assert seen == {"same": True} and resumed.trainer.start_epoch == 1


class Mean:
    """A user's loss of a classifier: a mean over images, as Ultralytics' own."""

    def __call__(self, preds, batch):
        loss = preds.float().square().mean()
        return loss, {"loss": loss.detach()}


def test_terms_beside_an_own_loss_of_a_classifier_are_no_larger_than_beside_ultralytics(own):
    model = task_model("classify")
    batch = {"img": torch.rand(8, 3, 64, 64), "cls": torch.zeros(8, dtype=torch.long)}
    found = []
    for base in (Mean(), v8ClassificationLoss()):
        loss = DistillationLoss(base, Terms(), model.model[-1], trains=False)
        found.append(loss(model(batch["img"]), {**batch, "teacher": object()})[0][-1].item())
    assert found == [0.5, 0.5]


class Terms:
    """Stands for a distiller with one term of 0.5."""

    balance, gains, terms = None, {"": 1.0}, ("kd_cls",)

    def __call__(self, *_):
        return {"kd_cls": torch.tensor(0.5)}
