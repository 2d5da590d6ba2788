"""New classes without forgetting (`kd_keep`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import NAMES, QUICK, STUDENT, draw_dataset, make_model, save_model, unwrapped
from task_models import task_model
from test_ddp import ARGS, launching, read
from test_own_trainer import OwnDataset
from test_teachers import build
from test_training import results
from ultralytics.cfg import get_cfg
from ultralytics.utils import LOGGER, YAML
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO, KDDetectionTrainer, KDError, config, outputs
from ultralytics_kd.bench.plan import make_plan
from ultralytics_kd.bench.run import run_bench
from ultralytics_kd.bench.scores import score_kept
from ultralytics_kd.cache import make_cache
from ultralytics_kd.distillation.keeping import SEEN_LOGIT, ClassKeeper
from ultralytics_kd.distillation.loss import LABELED, DistillationLoss
from ultralytics_kd.outputs import ONE2MANY, ONE2ONE, Branch, class_rows
from ultralytics_kd.report import run_report
from ultralytics_kd.teachers import open_teacher
from ultralytics_kd.teachers.answers import Answer, SetAnswer
from ultralytics_kd.teachers.class_map import UNKNOWN
from ultralytics_kd.training.keeping import Keeping, kept_feature_weight, unite

OLD = {0: "disc", 1: "box"}  # the old model's classes
NEW = {0: "bar", 1: "BOX"}  # the data's: one is new, one is known
UNITED = {0: "disc", 1: "box", 2: "bar"}


# The base loss --------------------------------------------------------------------------------------------------------
KEPT = [0]  # of the three classes of the models below


@pytest.fixture(scope="module", params=[STUDENT, "yolov8n.yaml"])
def student(request):
    """Return a student with two heads, and one with a single head."""
    torch.manual_seed(0)
    model = make_model(request.param).train()
    model.args = get_cfg(overrides={"kd_cls": 2.0})
    return model


def batch(images: int = 2, teacher=None) -> dict:
    """Return a batch with a label of class 2 in each image."""
    generator = torch.Generator().manual_seed(3)
    content = {
        "img": torch.rand(images, 3, 64, 64, generator=generator),
        "cls": torch.full((images, 1), 2.0),
        "bboxes": torch.tensor([[0.3, 0.3, 0.4, 0.4]]).repeat(images, 1),
        "batch_idx": torch.arange(images).float(),
    }
    return content if teacher is None else {**content, "teacher": teacher}


def predictions(student, images: torch.Tensor):
    """Return raw outputs whose class logits have a gradient of their own."""
    preds = student(images)
    heads = [preds[b] for b in (ONE2MANY, ONE2ONE) if b in preds] or [preds]
    for head in heads:
        head["scores"] = head["scores"].detach().requires_grad_()
    return preds, {b: h["scores"] for b, h in zip((ONE2MANY, ONE2ONE), heads)}


def answer(student, images: int = 2, seen: float | None = 2.0, seed: int = 0) -> Answer:
    """Return a teacher's answer that sees class 0 at every third anchor point, and nothing else."""
    layout = outputs.layout(student)
    points = sum((64 // s) ** 2 for s in layout.strides)
    scores = torch.full((images, points, 3), -9.0)
    if seen is not None:
        scores[:, seed::3, 0] = seen
    boxes = torch.zeros(images, points, 4 * layout.reg_max)
    return Answer({b: Branch(scores.clone(), boxes, []) for b in layout.branches}, None, None)


class Spy:
    """Passes for a base loss's `bce` and keeps what it was given."""

    def __init__(self, stock):
        self.stock = stock

    def __call__(self, scores, target):
        self.scores, self.target = scores, target
        return self.stock(scores, target)


def losses(student, content: dict, keeper: ClassKeeper | None, spy: bool = True):
    """Return base loss, spies by branch, class gradients by branch and what the distiller was asked."""
    asked = []

    class Terms:
        gains, balance, fade, weights, terms = {}, None, 1.0, {}, {}

        def __call__(self, preds, teacher, *_):
            asked.append(teacher)
            return {"kd_cls": torch.zeros(())}

    base = student.init_criterion()
    loss = DistillationLoss(base, Terms(), outputs.find_head(student), keeper=keeper)
    spies = {}
    for name, branch in loss.bases.items():
        if spy:
            spies[name] = branch.bce = Spy(branch.bce)
    preds, scores = predictions(student, content["img"])
    value, items = loss(preds, content)
    value.sum().backward()
    for name, branch in loss.bases.items():
        assert not spy or branch.bce is spies[name]  # it is back in its place
    return value, items, spies, {n: s.grad.transpose(1, 2) for n, s in scores.items()}, asked, loss


def keeper_of(student, kept=KEPT, strides=None) -> ClassKeeper:
    """Return the keeper of a student's classes."""
    layout = outputs.layout(student)
    return ClassKeeper(kept, layout, strides or layout.strides)


def test_where_the_teacher_sees_a_kept_class_the_base_loss_ignores_it_exactly(student):
    content = batch(teacher=answer(student))
    plain, items, spies, gradients, _, loss = losses(student, content, None)
    value, kept_items, _, kept_gradients, _, _ = losses(student, content, keeper_of(student))
    labelled, expected = torch.zeros(()), 0.0
    for name, spy in spies.items():
        labelled = labelled + (spy.target.amax(-1) > 0)
        ignored = torch.zeros_like(spy.target, dtype=torch.bool)
        ignored[:, ::3, 0] = True
        ignored &= ~(labelled > 0)[..., None]
        assert ignored.sum() > 20 and (labelled > 0).sum() > 0
        assert (kept_gradients[name][ignored] == 0).all()
        assert torch.equal(kept_gradients[name][~ignored], gradients[name][~ignored])
        lost = spy.stock(spy.scores, spy.target)[ignored].sum() / spy.target.sum().clamp(min=1) * student.args.cls
        expected = expected + loss.gains[name] * lost.detach() * 2
    assert value[1].detach() == pytest.approx(float(plain[1].detach() - expected), rel=1e-5)
    assert torch.equal(value[[0, 2]], plain[[0, 2]])  # boxes are learnt from labels as ever
    assert kept_items["cls_loss"] < items["cls_loss"] and kept_items["box_loss"] == items["box_loss"]


def test_a_teacher_that_sees_nothing_leaves_the_base_loss_bit_for_bit(student):
    content = batch(teacher=answer(student, seen=SEEN_LOGIT - 1e-3))
    plain, _, _, gradients, _, _ = losses(student, content, None, spy=False)
    value, _, _, kept_gradients, _, _ = losses(student, content, keeper_of(student), spy=False)
    assert torch.equal(plain, value) and all(torch.equal(gradients[n], kept_gradients[n]) for n in gradients)
    no_answer, _, _, _, _, _ = losses(student, batch(), keeper_of(student), spy=False)
    assert torch.equal(no_answer, plain[:3])


def test_where_a_label_is_assigned_the_teacher_sees_no_kept_class(student):
    everywhere = answer(student, seen=None)
    for branch in everywhere.branches.values():
        branch.scores[..., 0], branch.scores[..., 1] = 3.0, 1.0
    content = batch(teacher=everywhere)
    _, _, spies, _, (asked,), _ = losses(student, content, keeper_of(student))
    labelled = spies[ONE2MANY].target.amax(-1) > 0
    for name, branch in asked.branches.items():  # also in the branch that assigns a label to a single anchor point
        assert torch.equal(branch.scores[..., 0] == UNKNOWN, labelled), name
        assert (branch.scores[..., 0][~labelled] == 3.0).all() and (branch.scores[..., 1] == 1.0).all()
    assert (everywhere.branches[ONE2MANY].scores[..., 0] == 3.0).all()  # the answer in the batch stays


def test_images_without_labels_are_not_in_the_base_loss(student):
    content = {**batch(3, answer(student, 3)), LABELED: 2}
    for name in ("cls", "bboxes", "batch_idx"):
        content[name] = content[name][:2]
    _, _, _, gradients, (asked,), _ = losses(student, content, keeper_of(student))
    assert all((g[2] == 0).all() and g[:2].any() for g in gradients.values())
    assert (asked.branches[ONE2MANY].scores[2, ::3, 0] == 2.0).all()


def test_pseudo_boxes_of_kept_classes_stay_labels_in_images_without_labels(student):
    content = {**batch(2, answer(student)), LABELED: 1}
    content["cls"][1] = 0.0  # a pseudo-box of the kept class, in the image without labels
    asked = []

    class All:
        """Gives the base loss all images, as pseudo-boxes do."""

        def loss(self, base, bases, preds, content, labeled):
            return base(preds, content)

    class Terms:
        gains, balance = {}, None

        def __call__(self, preds, teacher, *_):
            asked.append(teacher)
            return {"kd_cls": torch.zeros(())}

    base = student.init_criterion()
    keeper = keeper_of(student)
    loss = DistillationLoss(base, Terms(), outputs.find_head(student), pseudo=All(), keeper=keeper)
    preds, scores = predictions(student, content["img"])
    value, _ = loss(preds, content)
    value.sum().backward()
    for name, logits in scores.items():
        assert (logits.grad[0, 0, ::3] == 0).any() and (logits.grad[1] != 0).all(), name
        assert (asked[0].branches[name].scores[1] == content["teacher"].branches[name].scores[1]).all()
    assert (asked[0].branches[ONE2MANY].scores[0, :, 0] == UNKNOWN).any()


def test_of_several_answers_any_one_sees_and_a_missing_branch_is_seen_by_the_other(student):
    both = [answer(student), answer(student, seed=1)]
    for each in both:
        each.branches.pop(ONE2ONE, None)
    keeper = keeper_of(student)
    raw = outputs.branches(predictions(student, batch()["img"])[0])
    seen = keeper.seen(both, raw, dict.fromkeys(raw))
    assert set(seen) == set(raw)
    for values in seen.values():
        assert values[:, ::3, 0].all() and values[:, 1::3, 0].all() and not values[:, 2::3].any()
        assert not values[..., 1:].any()


def test_a_level_that_the_teacher_lacks_is_left_as_it_is(student):
    layout = outputs.layout(student)
    coarse = answer(student, seen=None)
    points = sum((64 // s) ** 2 for s in layout.strides[1:])
    for name, branch in coarse.branches.items():
        coarse.branches[name] = Branch(branch.scores[:, :points], branch.boxes, [])
    content = batch(teacher=coarse)
    _, _, _, gradients, (asked,), _ = losses(student, content, keeper_of(student, strides=layout.strides[1:]))
    fine = (64 // layout.strides[0]) ** 2
    points_of_labels = (gradients[ONE2MANY][:, :fine, 0] != 0).sum()  # there it is known that there is no kept class
    assert 0 < points_of_labels < fine
    assert (gradients[ONE2MANY][:, fine:, 0] != 0).all() and (gradients[ONE2MANY][..., 1:] != 0).all()
    assert asked.branches[ONE2MANY].scores.shape[1] == points


def test_a_set_of_detections_is_seen_in_its_boxes_unless_it_lies_on_a_label(student):
    content = batch()
    boxes = torch.tensor([[0.7, 0.7, 0.3, 0.3], [0.3, 0.3, 0.41, 0.4], [0.7, 0.3, 0.3, 0.3]])
    probs = torch.tensor([[0.3, 0.0], [0.9, 0.5], [0.01, 0.9]])  # of classes 0 and 1
    content["teacher"] = SetAnswer(boxes, probs, torch.zeros(3), torch.tensor([0, 1]))
    _, _, spies, gradients, (asked,), _ = losses(student, content, keeper_of(student))
    assert asked.probs.tolist() == [pytest.approx(row) for row in ([0.3, 0.0], [0.0, 0.5], [0.01, 0.9])]
    points, strides = outputs.anchors(
        outputs.branches(student(content["img"]))[ONE2MANY].feats, outputs.layout(student)
    )
    pixels = points * strides
    inside = ((pixels > 0.55 * 64) & (pixels < 0.85 * 64)).all(1)
    known = spies[ONE2MANY].target[0].amax(-1) > 0
    assert inside.sum() > 3 and torch.equal(gradients[ONE2MANY][0, :, 0] == 0, inside & ~known)
    assert (gradients[ONE2MANY][1] != 0).all()


def test_an_instance_of_kept_classes_alone_that_lies_on_a_label_is_left_out(student):
    content = batch()
    lying = SetAnswer(content["bboxes"][:1], torch.tensor([[0.9]]), torch.zeros(1), torch.tensor([0]))
    assert len(keeper_of(student).without_labelled(lying, content).probs) == 0
    lying.batch_idx += 5  # another image
    assert len(keeper_of(student).without_labelled(lying, content).probs) == 1
    nothing = SetAnswer(torch.zeros(0, 4), torch.zeros(0, 1), torch.zeros(0), torch.tensor([0]))
    assert keeper_of(student).without_labelled(nothing, content) is nothing


def test_a_base_loss_without_a_part_to_mask_is_refused(student):
    with pytest.raises(KDError, match="'kd_keep' needs Ultralytics' own loss, and SimpleNamespace has no"):
        DistillationLoss(SimpleNamespace(), None, None, keeper=keeper_of(student))

    class Own:
        bce = staticmethod(lambda scores, target: scores)

        def __call__(self, preds, content):
            return torch.zeros(3), {"cls_loss": torch.zeros(())}

    loss = DistillationLoss(Own(), None, None, keeper=keeper_of(student))
    content = batch(teacher=answer(student))
    with pytest.raises(KDError, match="Own does not compute its class part by 'bce'"):
        loss({ONE2MANY: student(content["img"]).get(ONE2MANY) or student(content["img"])}, content)


def test_the_stock_part_is_back_after_an_error(student):
    content = batch(teacher=answer(student))
    base = student.init_criterion()
    loss = DistillationLoss(base, None, None, keeper=keeper_of(student))
    stock = [each.bce for each in loss.bases.values()]
    with pytest.raises(KeyError):
        loss(student(content["img"]), {k: v for k, v in content.items() if k != "cls"})
    assert [each.bce for each in loss.bases.values()] == stock


# Classes --------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def place(tmp_path_factory) -> SimpleNamespace:
    """Return an old model, data with a new class and a known one, and data of the old classes."""
    folder = tmp_path_factory.mktemp("keep")
    torch.manual_seed(0)
    old = str(save_model(folder / "old.pt", STUDENT, OLD))
    new, before = draw_dataset(folder / "new", names=NEW, seed=1), draw_dataset(folder / "old", names=OLD, seed=4)
    for file in folder.rglob("labels/**/*.txt"):  # shapes of the third class have no label
        file.write_text("\n".join(line for line in file.read_text().splitlines() if line[0] != "2"))
    return SimpleNamespace(old=old, new=str(new), before=str(before), folder=folder)


def keep(place, names: dict, **given) -> Keeping:
    """Return the classes that a run would have."""
    args = {"model": place.old, "data": "new.yaml", "kd_keep": True, "kd_keep_data": None, "kd_classes": "auto"}
    return Keeping(SimpleNamespace(**{**args, "split": "val", **given}), {"names": names, "nc": len(names)})


@pytest.mark.parametrize(
    "order, names, numbers",
    [
        (True, UNITED, [2, 1]),
        ("old", UNITED, [2, 1]),
        ("data", {0: "bar", 1: "box", 2: "disc"}, [0, 1]),
    ],
)
def test_classes_are_united_in_a_given_order(place, order, names, numbers):
    keeping = keep(place, NEW, kd_keep=order)
    assert (keeping.names, keeping.labels.numbers) == (names, numbers)
    assert [names[i] for i in keeping.kept] == ["disc"]


def test_uniting_again_changes_nothing():
    for order in (unite(OLD, NEW), unite(NEW, OLD)):
        assert unite(order, NEW) == order or unite(NEW, order) == order


@pytest.mark.parametrize(
    "names, given, message",
    [
        ({0: "bar", 1: "Bar"}, {}, r"data=new.yaml has several classes named 'bar': give each a name"),
        ({0: "boxes"}, {}, "'boxes' of the data and 'box' of model=.*may be one class"),
        (
            {0: "box", 1: "disc", 2: "bar"},
            {},
            "'kd_keep=True' has no effect: data=new.yaml names every class of model=",
        ),
        ({0: "bar"}, {"model": STUDENT}, "yaml has no classes to keep"),
        ({0: "bar"}, {"kd_keep_data": "nowhere.yaml"}, "kd_keep_data=nowhere.yaml cannot be read: "),
    ],
)
def test_names_that_clash_are_refused(place, names, given, message):
    with pytest.raises(KDError, match=message):
        keep(place, names, **given)


def test_a_map_of_classes_says_that_a_plural_is_another_class(place):
    assert keep(place, {0: "boxes"}, kd_classes={"box": "box"}).names == {0: "disc", 1: "box", 2: "boxes"}


def test_old_data_may_have_any_of_the_classes_and_no_others(place, tmp_path):
    data = YAML.load(place.before)
    YAML.save(tmp_path / "some.yaml", {**data, "names": {0: "BAR", 1: "disc"}})
    assert keep(place, NEW, kd_keep_data=str(tmp_path / "some.yaml")).old.numbers == [2, 0]
    YAML.save(tmp_path / "other.yaml", {**data, "names": {0: "disc", 1: "star"}})
    with pytest.raises(KDError, match=r"has the class 'star', which neither model=.* nor the data has"):
        keep(place, NEW, kd_keep_data=str(tmp_path / "other.yaml"))


def test_a_model_without_class_names_is_refused(place, tmp_path):
    nameless = save_model(tmp_path / "nameless.pt", STUDENT, {0: "0", 1: "1"})
    with pytest.raises(KDError, match=r"nameless\.pt has no class names, by which kd_keep tells"):
        keep(place, NEW, model=str(nameless))


def test_a_teacher_that_lacks_a_kept_class_is_refused(place, tmp_path):
    teacher = open_teacher(str(save_model(tmp_path / "other.pt", STUDENT, {0: "box", 1: "bar"})))
    keeping = keep(place, NEW)
    teacher.match(keeping.names)
    with pytest.raises(KDError, match=r"teacher=.*other\.pt does not know disc, which the data do not label"):
        keeping.check_teacher(teacher)


def test_a_teacher_with_levels_that_the_student_lacks_is_refused(place, tmp_path):
    """Objects that only they find would be background of the kept classes."""
    torch.manual_seed(0)
    teacher = save_model(tmp_path / "p6.pt", "yolo26n-p6.yaml", OLD)
    with pytest.raises(KDError, match=r"'kd_keep=True': the teacher has levels of strides \[64\]"):
        YOLO(place.old).train(**QUICK, data=place.new, teacher=str(teacher), kd_keep=True, project=str(tmp_path))


# Arguments ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", ["new", 1, [True]])
def test_other_values_are_refused(value):
    with pytest.raises(KDError, match="kd_keep"):
        config.check_values({"kd_keep": value})


@pytest.mark.parametrize(
    "given, message",
    [
        ({"teacher": None}, "has no effect without a teacher"),
        ({"kd_keep": False, "kd_keep_data": "old.yaml"}, "'kd_keep_data=old.yaml' has no effect without kd_keep"),
        ({"task": "segment"}, "'kd_keep=True' is supported for detect, not for task 'segment'"),
        ({"task": "classify"}, "is supported for detect"),
        ({"single_cls": True}, "'kd_keep=True' and 'single_cls' exclude each other"),
        ({"classes": 0}, "'kd_keep=True' and 'classes' exclude each other"),
        ({"classes": [0]}, "'kd_keep=True' and 'classes' exclude each other"),
        ({"pretrained": False}, "pretrained=False replaces them"),
        ({"pretrained": "coco.pt"}, "pretrained=coco.pt replaces them"),
        ({"cls_remap": False}, "cls_remap=False drops them"),
        ({"teacher": "ema"}, "teacher=ema changes with the student"),
        ({"teacher": "[EMA]"}, "teacher=ema changes with the student"),
        ({"teacher": [" ema "]}, "teacher=ema changes with the student"),
        ({"kd_cls": 0}, "with kd_cls=0 it does not teach them"),
        ({"kd_weight": "auto"}, "'kd_keep=True' and 'kd_weight' exclude each other"),
        ({"kd_schedule": "linear"}, "'kd_keep=True' and kd_schedule=linear exclude each other"),
    ],
)
def test_combinations_without_a_meaning_are_refused(given, message):
    arguments = get_cfg(overrides={"teacher": "old.pt", "task": "detect", "kd_keep": True, **given})
    with pytest.raises(KDError, match=message):
        config.check_combination(vars(arguments))


# Runs -----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def log(caplog):
    """Return what Ultralytics logs."""
    LOGGER.propagate = True
    yield caplog
    LOGGER.propagate = False


class Watching(KDDetectionTrainer):
    """Keeps the labels of batches, and the class rows that the student begins with."""

    def _setup_train(self):
        super()._setup_train()
        self.rows = {name: rows.clone() for name, rows in class_rows(self.model).items()}
        self.given = []
        self.profiled = self.distillation.with_teacher(self.model)

    def preprocess_batch(self, batch):
        self.given += batch["cls"].flatten().tolist()
        return super().preprocess_batch(batch)


def train(place, tmp_path, trainer: type = Watching, **more):
    """Train the old model on the new data; return the trainer."""
    given = {**QUICK, "data": place.new, "project": str(tmp_path / "runs"), "name": "run", "epochs": 1, "mosaic": 0.0}
    model = YOLO(place.old)
    model.train(**{**given, "teacher": place.old, "kd_keep": True, **more}, trainer=trainer)
    return model.trainer


def label_files(place) -> dict:
    """Return content and time of all label files and label caches of the new data."""
    files = sorted((place.folder / "new" / "labels").rglob("*.*"))
    return {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in files}


def test_a_run_keeps_the_old_classes_and_learns_the_new_one(place, tmp_path, log):
    YOLO(place.old).train(**{**QUICK, "data": place.new, "project": str(tmp_path), "epochs": 1, "val": False})
    files = label_files(place)
    assert any(f.suffix == ".cache" for f in files)
    trainer = train(place, tmp_path, kd_keep_data=place.before)
    assert label_files(place) == files  # neither labels nor label caches were written
    assert torch_load(trainer.best)["model"].names == UNITED == trainer.data["names"]
    assert YAML.load(trainer.save_dir / "args.yaml")["kd_keep"] is True
    assert trainer.args.kd_feat == 4.0 and results(trainer.save_dir)[0]["train/kd_feat"] > 0

    old = class_rows(YOLO(place.old).model)
    for name, rows in trainer.rows.items():
        assert torch.equal(rows[:2], old[name]), name
        if name.endswith("bias"):
            assert (rows[2] < -3).all()  # Ultralytics' first bias of a class: it is rare
    own = [i for label in Path(place.new).parent.glob("labels/train/*.txt") for i in label.read_text().split("\n")]
    expected = sorted({"0": 2.0, "1": 1.0}[line[0]] for line in own if line)
    assert sorted(trainer.given) == expected
    assert set(trainer.validator.metrics.ap_class_index) == {1, 2}  # the val set's labels are renumbered too
    assert "1 classes that the data do not label; 1 are new; those of the old model come first" in unwrapped(log.text)

    alone = YOLO(trainer.best).val(data=place.before, imgsz=64, batch=4, workers=0, plots=False, device="cpu")
    score = {k: v for k, v in alone.results_dict.items() if k.startswith("metrics/")}
    assert {k: trainer.kept_metrics["student"][k] for k in score} == pytest.approx(score, abs=1e-6)
    assert trainer.metrics["kept/mAP50-95(B)"] == pytest.approx(score["metrics/mAP50-95(B)"], abs=1e-6)
    teacher = YOLO(place.old).val(data=place.before, imgsz=64, batch=4, workers=0, plots=False, device="cpu")
    assert trainer.kept_metrics["teacher"]["metrics/mAP50(B)"] == pytest.approx(
        teacher.results_dict["metrics/mAP50(B)"], abs=1e-6
    )
    assert f"On kd_keep_data={place.before}:" in log.text


def test_no_feature_term_holds_the_student_if_the_user_says_so(place, tmp_path):
    trainer = train(place, tmp_path, val=False, kd_feat=0.0)
    assert trainer.args.kd_feat == 0.0 and set(trainer.distiller.terms) == {"kd_cls", "kd_box"}


@pytest.mark.parametrize(
    "given, other, expected",
    [
        ({}, False, 4.0),
        ({"freeze": 2}, False, 4.0),
        ({"freeze": 5}, False, 0.0),
        ({"freeze": [0, 1, 2, 3, 4]}, False, 0.0),
        ({"kd_feat_loss": "cwd"}, False, 0.0),
        ({}, True, 0.0),
    ],
)
def test_features_are_held_in_place_where_the_student_begins_as_its_teacher(place, tmp_path, given, other, expected):
    student = YOLO(place.old).model
    assert len(student.model) == 6  # the last one is the head
    args = get_cfg(overrides={"kd_keep": True, **given})
    teacher = str(save_model(tmp_path / "other.pt", STUDENT, OLD)) if other else place.old
    assert kept_feature_weight(student, open_teacher(teacher), args) == expected


class Ignores(KDDetectionTrainer):
    """Builds a student without the old model's class rows."""

    def get_model(self, cfg=None, weights=None, verbose=True):
        return super().get_model(cfg, None, verbose)


@pytest.mark.parametrize(
    "trainer, message",
    [(OwnDataset, "the labels have the class numbers of data.yaml"), (Ignores, "does not begin with the class rows")],
)
def test_code_that_would_lose_classes_is_refused(place, tmp_path, trainer, message):
    with pytest.raises(KDError, match=f"kd_keep: .*{message}"):
        train(place, tmp_path, trainer)
    assert not (tmp_path / "runs" / "run").exists()


def test_a_refused_run_leaves_nothing(place, tmp_path):
    YAML.save(tmp_path / "all.yaml", {**YAML.load(place.new), "names": NAMES})
    with pytest.raises(KDError, match="'kd_keep=True' has no effect"):
        train(place, tmp_path, data=str(tmp_path / "all.yaml"))
    assert not (tmp_path / "runs" / "run").exists()


def test_images_on_which_old_classes_are_scored_are_not_taught_without_a_warning(place, tmp_path, log):
    old_val = str(Path(place.before).parent / "images" / "val")
    train(place, tmp_path, kd_keep_data=place.before, kd_unlabeled=old_val)
    assert "of kd_unlabeled's images are val images of kd_keep_data: the student's scores" in log.text


def test_stored_answers_that_lack_what_the_teacher_sees_are_refused(place, tmp_path):
    cache = {"data": place.new, "teacher": place.old, "kd_cache": str(tmp_path / "c"), "kd_cache_conf": 0.9}
    make_cache({**cache, "imgsz": 64, "batch": 2, "workers": 0, "device": "cpu", "kd_cache_scales": 1})
    with pytest.raises(KDError, match=r"lacks detections that 'kd_keep=True' needs.* kd_cache_conf=0\.05 or less"):
        train(place, tmp_path, kd_cache=cache["kd_cache"])


@pytest.mark.nightly
@pytest.mark.parametrize("order", ["old", "data"])
def test_resume_goes_on_with_the_same_classes(place, tmp_path, order):
    last = tmp_path / "last.pt"
    model = YOLO(place.old)
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    given = {**QUICK, "data": place.new, "project": str(tmp_path / "runs"), "name": "run", "kd_keep_data": place.before}
    model.train(**given, teacher=place.old, kd_keep=order)
    again = YOLO(last)
    again.train(resume=True)
    assert again.trainer.start_epoch == 1 and again.trainer.args.kd_keep == order
    assert again.trainer.data["names"] == model.trainer.data["names"] == torch_load(again.trainer.best)["model"].names
    assert "1 are new" in model.trainer.distillation.keeping.description
    assert "new" not in again.trainer.distillation.keeping.description  # the checkpoint has them all
    assert again.trainer.kept_metrics["student"].keys() == model.trainer.kept_metrics["student"].keys()
    assert results(again.trainer.save_dir)[1]["train/cls_loss"] == pytest.approx(
        results(model.trainer.save_dir)[1]["train/cls_loss"], rel=0.2
    )


@pytest.mark.nightly
def test_two_processes_keep_classes(place, tmp_path):
    with launching(tmp_path):
        model = YOLO(place.old)
        given = {**ARGS, "data": place.new, "project": str(tmp_path), "name": "run", "epochs": 1, "kd_feat": 0.0}
        model.train(**given, teacher=place.old, kd_keep=True, kd_keep_data=place.before)
    records = read(tmp_path)
    assert all(record["steps"] for record in records)
    assert torch_load(tmp_path / "run" / "weights" / "best.pt")["model"].names == UNITED


@pytest.mark.parametrize("several", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_an_nms_free_head_is_taught_kept_classes_by_a_teacher_without_one(several, place, tmp_path):
    """No label teaches them; detections are assigned to both heads as labels are. The mean of teachers has one head."""
    teacher = [place.old, place.old] if several else str(save_model(tmp_path / "other.pt", "yolov8n.yaml", OLD))
    trainer = train(place, tmp_path, teacher=teacher, val=False)
    assert trainer.distiller.levels.endswith("detections assigned like labels, NMS and NMS-free heads")
    assert trainer.profiled.imgsz == 64  # AutoBatch sees detections and their assignment too
    assert results(trainer.save_dir)[0]["train/kd_cls"] > 0


@pytest.mark.nightly
@pytest.mark.parametrize("given", [{"kd_teacher_imgsz": 96}, {"kd_cache": True}])
def test_answers_that_are_sets_keep_classes(place, tmp_path, given):
    trainer = train(place, tmp_path, kd_keep_data=place.before, **given)
    assert torch_load(trainer.best)["model"].names == UNITED
    assert set(trainer.kept_metrics) == {"teacher", "student"}


@pytest.mark.nightly
@pytest.mark.parametrize("given", [{}, {"kd_unlabeled_boxes": 0.6}])
def test_images_without_labels_keep_classes(place, tmp_path, given):
    images = str(Path(place.before).parent / "images" / "train")
    trainer = train(place, tmp_path, kd_unlabeled=images, val=False, **given)
    assert results(trainer.save_dir)[0]["train/kd_cls"] > 0
    assert torch_load(trainer.best)["model"].names == UNITED


@pytest.mark.nightly
def test_reports_compare_in_the_classes_of_each_val_set(place, tmp_path):
    trainer = train(place, tmp_path, kd_keep_data=place.before, plots=True)
    own, kept = (
        json.loads((trainer.save_dir / name / "report.json").read_text()) for name in ("report", "report-kept")
    )
    assert set(own["models"]) == set(kept["models"]) == {"teacher", "student"}
    end = kept["models"]["student"]["heads"]["nms"]["score"]
    assert end == pytest.approx(trainer.kept_metrics["student"]["metrics/mAP50-95(B)"], abs=1e-4)
    by_hand = {"teacher": place.old, "student": str(trainer.best), "data": place.before, "imgsz": 64}
    again = run_report({**by_hand, "project": str(tmp_path), "device": "cpu"})
    assert again["models"]["student"]["heads"]["nms"]["score"] == pytest.approx(end, abs=1e-4)


@pytest.mark.nightly
def test_a_bench_scores_every_arm_on_new_and_old_classes(place, tmp_path):
    given = {k: v for k, v in QUICK.items() if k not in {"verbose", "plots", "epochs"}}
    report = run_bench(
        {**given, "data": place.new, "model": place.old, "teacher": place.old, "epochs": 1, "seeds": 1}
        | {"arms": {"keep": {"kd_keep": True, "kd_keep_data": place.before}}, "project": str(tmp_path)}
    )
    rows = {(row["arm"], row["head"]): row for row in report["table"]}
    assert set(rows) == {(a, h) for a in ("alone", "keep") for h in ("nms", "end2end")}
    assert all("kept" in row for row in (*rows.values(), *report["teachers"]))
    text = (tmp_path / "bench" / "bench.md").read_text()
    assert "old classes: mAP50-95" in text


def test_weights_without_a_class_of_the_data_score_nothing_there(place, tmp_path):
    data = {**YAML.load(place.new), "names": {0: "star", 1: "moon"}}
    YAML.save(tmp_path / "other.yaml", data)
    args = {"data": str(tmp_path / "other.yaml"), "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu"}
    row = score_kept(place.old, args, None)
    assert row["unmatched"] == ["star", "moon"] and row["scores"]["end2end"] == {"score": 0.0, "second": 0.0}


def test_detector_of_another_kind_without_a_class_of_the_data_scores_nothing_there(place, tmp_path):
    detector = build("yolov8n-rtdetr.yaml")
    detector.names, detector.task = {0: "comet", 1: "planet", 2: "moon"}, "detect"
    torch.save({"model": detector, "train_args": {"task": "detect"}}, tmp_path / "rtdetr.pt")
    args = {"data": place.new, "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu"}
    row = score_kept(str(tmp_path / "rtdetr.pt"), args, None)
    assert row["scores"] == {"output": {"score": 0.0, "second": 0.0}}


def test_model_with_masks_is_scored_as_the_detector_that_teaches(place, tmp_path):
    """In a bench of kept classes too, its val set has boxes and no masks."""
    model = task_model("segment")
    model.names = {i: f"other {i}" for i in range(6)} | dict(YAML.load(place.before)["names"])
    torch.save({"model": model, "train_args": {"task": "segment"}}, tmp_path / "masks.pt")
    args = {"data": place.before, "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu"}
    row = score_kept(str(tmp_path / "masks.pt"), args, None, task="detect")
    assert row["unmatched"] == [] and set(row["scores"]) == {"nms", "end2end"}


def test_arms_with_several_old_data_are_refused(place):
    arms = {name: {"kd_keep": True, "kd_keep_data": f"{name}.yaml"} for name in ("a", "b")}
    with pytest.raises(KDError, match=r"the arms name several kd_keep_data \(a\.yaml, b\.yaml\)"):
        make_plan({"data": place.new, "model": place.old, "teacher": place.old, "arms": arms})
