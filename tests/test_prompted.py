"""Teachers whose classes are words (YOLO-World, YOLOE)."""

from __future__ import annotations

import copy
import gc
import sys
from pathlib import Path

import pytest
import torch
from conftest import MODELS, NAMES, STUDENT, save_model
from prompted_models import KINDS, TextEncoder, prompted_model, put_encoder, save_prompted
from ultralytics.nn.tasks import SegmentationModel
from ultralytics.utils import YAML
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO, KDError
from ultralytics_kd.bench.run import Bench
from ultralytics_kd.bench.scores import score
from ultralytics_kd.cache import make_cache
from ultralytics_kd.outputs import ONE2MANY
from ultralytics_kd.report import run_report
from ultralytics_kd.teachers import open_teacher, prompted
from ultralytics_kd.training.scores import tables

WORDS = {"a thing that is round": "disc", "box": "box", "a crate": "box"}
CPU = torch.device("cpu")


@pytest.fixture
def encoder(monkeypatch):
    """Put a text encoder without weights in place of Ultralytics', and forget texts that are known."""
    monkeypatch.setattr(prompted, "_known", {})
    return put_encoder(monkeypatch)


@pytest.fixture
def offline(monkeypatch):
    """Let every text encoder fail to load, and forget texts that are known."""
    loaded = put_encoder(monkeypatch)
    monkeypatch.setattr(prompted, "_known", {})

    def build(name, device=None):
        raise ConnectionError("no route to host.\nSee the log.")

    monkeypatch.setattr(sys.modules["ultralytics.nn.text_model"], "build_text_model", build)
    return loaded


def asked(model, names: list[str]):
    """Return the raw predictions of Ultralytics' own model for texts, of its first branch."""
    model, images = copy.deepcopy(model), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    if hasattr(model, "get_visual_pe"):
        model.set_classes(names, model.get_text_pe(names))
    else:
        model.set_classes(names)
    with torch.no_grad():
        raw = model(images)[1]
    return images, raw.get(ONE2MANY, raw)


# The model ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("task", ["detect", "segment"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_predicts_what_ultralytics_predicts_for_its_words(kind, task, encoder):
    if task == "segment" and "seg" not in kind:
        return
    model = prompted_model(kind)
    images, raw = asked(model, list(WORDS))
    teacher = open_teacher(model, task)
    teacher.match(NAMES, WORDS)
    teacher.prepare(CPU)
    answer = teacher.run(images)[ONE2MANY]
    torch.testing.assert_close(teacher.run(images[:1])[ONE2MANY].scores, answer.scores[:1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(answer.scores.transpose(1, 2), raw["scores"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(answer.boxes.transpose(1, 2), raw["boxes"], rtol=1e-3, atol=1e-4)
    assert answer.scores.std() > 0.05 and teacher.task == task
    assert teacher.layout.branches == ((ONE2MANY, "one2one") if "26" in kind else (ONE2MANY,))
    assert teacher.classes.sources == {0: (0,), 1: (1, 2)}


def test_text_is_embedded_once_and_the_encoder_leaves_memory(encoder):
    first, second = (open_teacher(prompted_model("yoloe26-seg"), "detect") for _ in range(2))
    first.match(NAMES)
    gc.collect()
    assert encoder.names == ["mobileclip:blt"] and not encoder.alive
    assert not any(isinstance(m, TextEncoder) for m in first.original.modules())
    second.match(NAMES, {"disc": "disc", "a new word": "bar"})
    second.match(NAMES, {"disc": "disc", "a new word": "bar"})
    assert len(encoder.names) == 2 and list(second.prompts) == ["disc", "a new word"]


def test_encoder_that_was_saved_with_the_model_is_used_and_dropped(offline):
    model = prompted_model("world")
    model.clip_model = TextEncoder()
    teacher = open_teacher(model, "detect")
    teacher.match(NAMES)
    assert not offline.names and not any(isinstance(m, TextEncoder) for m in teacher.original.modules())


@pytest.mark.parametrize("kind", ["yoloe-seg", "worldv2"])
def test_words_that_were_set_before_saving_need_no_encoder(kind, encoder, tmp_path, request):
    model = prompted_model(kind)
    images, raw = asked(model, ["bar", "disc"])
    if "world" in kind:
        model.set_classes(list(NAMES.values()))
    else:
        model.set_classes(list(NAMES.values()), model.get_text_pe(list(NAMES.values())))
    model.names = dict(NAMES)
    path = save_prompted(tmp_path / "set.pt", model=model)
    request.getfixturevalue("offline")
    teacher = open_teacher(path, "detect")
    teacher.match({0: "Bar", 1: "disc"})
    teacher.prepare(CPU)
    answer = teacher(images).branches[ONE2MANY]
    torch.testing.assert_close(answer.scores.transpose(1, 2), raw["scores"], rtol=1e-3, atol=1e-4)
    with pytest.raises(KDError, match=r"its text encoder.*for the prompt 'cup'.*no route to host\. Set the classes"):
        open_teacher(path, "detect").match({0: "cup", 1: "disc"})


@pytest.mark.parametrize("free", [False, True], ids=["fused", "prompt-free"])
def test_vocabulary_that_is_part_of_the_weights_is_a_closed_teacher(free, encoder):
    model, names = prompted_model("yoloe"), list(NAMES.values())
    images, raw = asked(model, names)
    vocabulary = model.get_vocab(names)
    if free:
        model.set_vocab(vocabulary, names)
    teacher = open_teacher(model, "detect")
    encoder.names.clear()
    teacher.match(NAMES, {"bar": "bar", "disc": "disc"})
    teacher.prepare(CPU)
    answer = teacher.run(images)[ONE2MANY]
    torch.testing.assert_close(answer.scores.transpose(1, 2), raw["scores"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(answer.boxes.transpose(1, 2), raw["boxes"], rtol=1e-3, atol=1e-4)
    assert not encoder.names
    with pytest.raises(KDError, match=r"names 'a cup', which is not a class of the teacher.*only YOLO-World"):
        teacher.match(NAMES, {"a cup": "bar"})


def test_identity_has_the_words_in_it(encoder):
    def identity(names, spec="auto", embeds=True):
        teacher = open_teacher(prompted_model("yoloe"), "detect")
        teacher.match(names, spec) if embeds else prompted.give_prompts([teacher], names, spec)
        return teacher.fingerprint()

    assert identity(NAMES) == identity(NAMES, embeds=False) == identity(dict(NAMES))
    others = identity(NAMES), identity({0: "disc", 1: "box"}), identity(NAMES, WORDS), identity(NAMES, {"box": "box"})
    assert len(set(others)) == 4


def test_words_of_one_of_several_teachers_are_those_that_no_other_knows(encoder, teacher):
    both = open_teacher([teacher, prompted_model("yoloe26")], "detect")
    both.match(NAMES, {"disc": "disc", "a crate": "box"})
    closed, words = both.members
    assert list(words.prompts) == ["a crate"] and closed.classes.student == [0] and words.classes.student == [1]
    assert both.prepare(CPU)(torch.rand(1, 3, 64, 64)).branches[ONE2MANY].scores.shape[-1] == 2
    with pytest.raises(KDError, match="kd_classes names no class of teacher=YOLOEModel in memory"):
        open_teacher([teacher, prompted_model("yoloe26")], "detect").match(NAMES, {"disc": "disc"})


@pytest.mark.parametrize(
    "names, spec, message",
    [
        ({0: "disc", 1: " "}, "auto", "data= has a class with an empty name, and teacher=YOLOEModel in memory looks"),
        (NAMES, {" ": "disc"}, "kd_classes has an empty prompt, and teacher="),
        (NAMES, {"a cup": "cup"}, "kd_classes names 'cup', which is not a class of the data"),
    ],
)
def test_words_that_cannot_be_looked_for_are_one_sentence(names, spec, message, encoder):
    with pytest.raises(KDError, match=message):
        open_teacher(prompted_model("yoloe"), "detect").match(names, spec)


# In a run -------------------------------------------------------------------------------------------------------------
def test_masks_of_a_teacher_are_no_hindrance_for_a_detector(tmp_path):
    """A teacher of instance segmentation, of words or not, teaches boxes and classes."""
    body = {**YAML.load(MODELS / "yolo0.yaml"), "scale": "s"}
    model = SegmentationModel({**body, "head": [[[2, 3, 4], 1, "Segment26", ["nc", 32, 64]]]}, nc=3, verbose=False)
    model.names, model.args, images = dict(NAMES), {"task": "segment"}, torch.rand(1, 3, 64, 64)
    torch.save({"model": model, "train_args": {"task": "segment"}}, tmp_path / "seg.pt")
    teachers = [open_teacher(tmp_path / "seg.pt", task) for task in ("detect", "segment")]
    for teacher, task in zip(teachers, ("detect", "segment")):
        teacher.match(NAMES)
        teacher.prepare(CPU)
        assert teacher.task == teacher.layout.task == task
    detector, segmenter = (teacher(images).branches[ONE2MANY] for teacher in teachers)
    assert torch.equal(detector.scores, segmenter.scores) and torch.equal(detector.boxes, segmenter.boxes)
    assert type(teachers[0].original).__name__ == "DetectionModel" and model.names == NAMES


def test_run_goes_on_with_the_same_vectors_and_no_encoder(encoder, quick, tmp_path, request, monkeypatch):
    """They are saved in the checkpoint. The student is an ordinary one."""
    path = save_prompted(tmp_path / "yoloe.pt")
    model = YOLO(STUDENT)

    def cut(trainer):
        if trainer.epoch == 0:
            raise SystemError("cut")

    model.add_callback("on_model_save", cut)
    with pytest.raises(SystemError):
        model.train(**quick, teacher=path, kd_classes=WORDS)
    before = model.trainer.teacher
    identity, vector = before.fingerprint(), next(iter(before.vectors().values())).clone()
    request.getfixturevalue("offline")
    last = tmp_path / "runs/run/weights/last.pt"
    again = YOLO(last)
    again.train(resume=True)
    assert again.trainer.teacher.fingerprint() == identity and again.trainer.epoch == 1
    assert torch.equal(next(iter(again.trainer.teacher.vectors().values())), vector)
    assert type(torch_load(last)["model"]).__name__ == "DetectionModel" and again.names == NAMES
    assert YAML.load(tmp_path / "runs/run/args.yaml")["kd_classes"] == WORDS


@pytest.mark.nightly
def test_teacher_in_memory_is_kept_with_its_words(encoder, quick, tmp_path, request):
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda trainer: (_ for _ in ()).throw(SystemError("cut")))
    with pytest.raises(SystemError):
        model.train(**quick, teacher=prompted_model("worldv2"), kd_classes=WORDS)
    request.getfixturevalue("offline")
    again = YOLO(tmp_path / "runs/run/weights/last.pt")
    again.train(resume=True)
    assert list(again.trainer.teacher.names.values()) == list(WORDS)


@pytest.mark.nightly
def test_stored_answers_are_those_to_the_words(encoder, data, quick, tmp_path):
    path = save_prompted(tmp_path / "yoloe.pt")
    common = {"data": data, "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu"}
    store = make_cache({**common, "teacher": path, "kd_cache": str(tmp_path / "answers"), "kd_classes": WORDS})
    assert list(store.manifest().names.values()) == list(WORDS)
    student = YOLO(STUDENT)
    student.train(**{**quick, "epochs": 1}, teacher=path, kd_cache=str(store.folder), kd_classes=WORDS)
    assert student.trainer.distillation.cached.classes.sources == {0: (0,), 1: (1, 2)}
    with pytest.raises(KDError, match="holds answers of other weights"):
        YOLO(STUDENT).train(**{**quick, "name": "other"}, teacher=path, kd_cache=str(store.folder))
    with pytest.raises(KDError, match="'kd_classes' has no effect on stored answers"):
        make_cache({**common, "teacher": save_model(tmp_path / "closed.pt", STUDENT), "kd_classes": WORDS})


@pytest.mark.nightly
def test_stored_answers_of_a_run_are_those_to_kept_classes_too(encoder, data, quick, tmp_path):
    student = YOLO(save_model(tmp_path / "old.pt", STUDENT, {0: "wheel"}))
    student.train(**{**quick, "epochs": 1}, teacher=save_prompted(tmp_path / "t.pt"), kd_keep=True, kd_cache=True)
    assert list(student.trainer.store.manifest().names.values()) == ["wheel", *NAMES.values()]


@pytest.mark.nightly
def test_bench_and_report_score_it_as_a_plain_detector(encoder, data, quick, tmp_path):
    path = save_prompted(tmp_path / "yoloe.pt")
    args = {"data": data, "imgsz": 64, "workers": 0, "device": "cpu"}
    scored = score(path, args, WORDS, "detect")
    assert set(scored["scores"]) == {"nms", "end2end"} and scored["unmatched"] == ["bar"]
    student = save_model(tmp_path / "student.pt", STUDENT)
    given = {"teacher": path, "student": str(student), **args, "kd_classes": WORDS, "images": 1}
    report = run_report({**given, "project": str(tmp_path), "name": "report"})
    assert set(report["models"]["teacher"]["heads"]) == {"nms", "end2end"}


def test_arms_of_other_words_have_other_teachers(encoder, data, tmp_path):
    from types import SimpleNamespace

    bench = Bench(SimpleNamespace(task="detect"), data, None)
    path = save_prompted(tmp_path / "yoloe.pt")
    one, other = bench._resolve(path, False, "auto"), bench._resolve(path, False, WORDS)
    assert one["path"] == other["path"] == str(Path(path).resolve()) and one["sha256"] != other["sha256"]
    assert not encoder.names


# Images without labels alone ------------------------------------------------------------------------------------------
@pytest.fixture
def words(data, tmp_path):
    """Return a data.yaml with names and a val set, and a folder of images without labels."""
    described = YAML.load(data)
    (tmp_path / "photos").mkdir()
    for image in (Path(described["path"]) / "images/train").iterdir():
        (tmp_path / "photos" / image.name).write_bytes(image.read_bytes())
    YAML.save(tmp_path / "names.yaml", {k: described[k] for k in ("path", "val", "names")})
    return {"data": str(tmp_path / "names.yaml"), "kd_unlabeled": str(tmp_path / "photos")}


@pytest.mark.parametrize("kind", ["yoloe26-seg", pytest.param("worldv2", marks=pytest.mark.nightly)])
def test_list_of_words_and_a_folder_of_images_make_a_detector(kind, encoder, words, quick, tmp_path):
    """A student with an NMS-free head learns it from detections, if the teacher has none."""
    student = YOLO(STUDENT)
    student.train(**{**quick, **words, "plots": kind == "worldv2"}, teacher=save_prompted(tmp_path / "t.pt", kind))
    trainer = student.trainer
    items = trainer.loss_items
    assert items["box_loss"] == items["cls_loss"] == 0 and items["kd_cls"] > 0 and items["kd_box"] > 0
    for part in ("cv3", "one2one_cv3"):
        towers = getattr(trainer.model.model[-1], part)
        assert any(p.grad is not None and p.grad.any() for p in towers.parameters()), part
    assert len(trainer.train_loader.dataset) == 8 and student.names == NAMES
    completed = YAML.load(trainer.args.data)
    assert completed["train"] is None and Path(trainer.args.data).parent == trainer.save_dir
    best = YOLO(trainer.best)
    assert best.val(device="cpu", plots=False, workers=0).box.map >= 0  # Ultralytics itself can score it
    last = trainer.save_dir / "weights/last.pt"
    assert torch_load(last)["train_args"]["data"] == trainer.args.data


@pytest.mark.parametrize("plots", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_what_it_is_sure_of_enters_the_base_loss(plots, encoder, words, quick, tmp_path):
    student = YOLO(STUDENT)
    args = {**quick, **words, "epochs": 1, "plots": plots, "kd_unlabeled_boxes": 0.3}
    student.train(**args, teacher=save_prompted(tmp_path / "t.pt", "yoloe26"))
    items = student.trainer.loss_items
    assert items["box_loss"] > 0 and items["cls_loss"] > 0 and items["kd_cls"] > 0
    assert (tmp_path / "runs/run/unlabeled_batch0.jpg").exists() == plots


@pytest.mark.nightly
def test_it_goes_on_after_an_interruption_and_sees_larger_images(encoder, words, quick, tmp_path):
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda trainer: (_ for _ in ()).throw(SystemError("cut")))
    with pytest.raises(SystemError):
        model.train(**{**quick, **words}, teacher=save_prompted(tmp_path / "t.pt"), kd_teacher_imgsz=96)
    again = YOLO(tmp_path / "runs/run/weights/last.pt")
    again.train(resume=True)
    assert again.trainer.epoch == 1 and again.trainer.loss_items["box_loss"] == 0
    assert again.trainer.distillation.teacher_imgsz == 96


def test_without_labels_nobody_teaches_a_class_that_the_teacher_lacks(tmp_path):
    teacher = open_teacher(str(save_model(tmp_path / "t.pt", STUDENT, {0: NAMES[1]})))
    teacher.match(NAMES)
    said = tables._classes(teacher, "name", alone=True)
    assert said == f"1 of 3 matched by name; taught by nobody: {NAMES[0]}, {NAMES[2]}"


@pytest.mark.parametrize(
    "more, message",
    [
        (
            {"kd_weight": "auto"},
            "'kd_weight=auto' compares gradients with those of labels, and data=.* has no training",
        ),
        (
            {"kd_keep": True},
            "'kd_keep=True' keeps old classes beside labels of others, and data=.* has no training images",
        ),
        pytest.param(
            {"task": "segment"},
            "has no training images, and task 'segment' needs some with labels",
            marks=pytest.mark.nightly,
        ),
        ({"kd_unlabeled": None}, "'train:' key missing"),
    ],
)
def test_what_needs_labels_is_one_sentence(more, message, words, quick, teacher, tmp_path):
    student = "yolo26n-seg.yaml" if "task" in more else STUDENT
    if "task" in more:
        from task_models import task_model

        torch.save({"model": task_model("segment"), "train_args": {"task": "segment"}}, tmp_path / "seg.pt")
        teacher = str(tmp_path / "seg.pt")
    with pytest.raises((KDError, RuntimeError), match=message):
        YOLO(student).train(**{**quick, **words, **more}, teacher=teacher)
    assert not (tmp_path / "runs/run").exists()


@pytest.mark.nightly
def test_two_processes_learn_from_words_and_images_alone(encoder, words, tmp_path):
    """The words were set before the model was saved, so no process needs an encoder."""
    from test_ddp import ARGS, launching, read

    names = list(NAMES.values())
    model = prompted_model("yoloe26-seg")
    model.set_classes(names, model.get_text_pe(names))
    model.names = dict(NAMES)
    path = save_prompted(tmp_path / "set.pt", model=model)
    with launching(tmp_path):
        args = {**ARGS, **words, "kd_feat": 0.0, "project": str(tmp_path / "runs"), "name": "run"}
        YOLO("yolo26n.yaml").train(**args, teacher=path)
    first, second = read(tmp_path)
    for record in (first, second):
        assert all(step["items"]["kd_cls"] > 0 and not step["items"]["box_loss"] for step in record["steps"])
    assert torch.equal(first["student"], second["student"])


def test_commands_that_need_training_images_say_so(words, tmp_path, teacher):
    with pytest.raises(KDError, match="has no training images"):
        make_cache({"data": _with_empty_train(words["data"]), "teacher": teacher, "kd_cache": str(tmp_path / "a")})


def _with_empty_train(data: str) -> str:
    """Add an entry without a value, which Ultralytics accepts."""
    Path(data).write_text(Path(data).read_text() + "\ntrain:\n")
    return data
