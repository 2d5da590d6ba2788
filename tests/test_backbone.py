"""Foundation models of timm as teachers of features (`teacher=timm:NAME`)."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import NAMES, QUICK, STUDENT, save_model
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO, KDDetectionTrainer, KDError, config
from ultralytics_kd.bench.run import Bench
from ultralytics_kd.cache import make_cache
from ultralytics_kd.demo.tasks import draw_task_dataset
from ultralytics_kd.distillation.distillers.base import backbones_of
from ultralytics_kd.distillation.pairs import FeaturePair
from ultralytics_kd.distillation.terms.backbone import BackboneTerm, nearest_levels
from ultralytics_kd.outputs import FeatureLayout
from ultralytics_kd.teachers import match_channels, open_teacher
from ultralytics_kd.teachers.backbone import BackboneTeacher

timm = pytest.importorskip("timm")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a function that saves a model of timm with random weights once, and returns its name as a teacher."""
    folder, made = tmp_path_factory.mktemp("timm"), {}

    def save(name: str) -> str:
        if name not in made:
            torch.manual_seed(0)
            model = timm.create_model(name)  # with its classifier, as such files are
            torch.save(model.state_dict(), folder / f"{name}.pth")
            made[name] = f"timm:{name}@{folder / f'{name}.pth'}"
        return made[name]

    return save


def prepared(source, task="detect"):
    teacher = open_teacher(source, task)
    teacher.match(NAMES)
    return teacher.prepare(CPU)


# The maps -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name, strides, channels",
    [
        ("test_vit", (16,), (64,)),
        ("test_resnet", (2, 4, 8, 16, 32), (32, 32, 48, 192, 96)),
        ("test_convnext", (4, 8, 16, 32), (24, 32, 48, 64)),
    ],
)
def test_maps_are_those_of_timm_for_the_normalised_batch(name, strides, channels, weights):
    teacher = prepared(weights(name))
    assert (teacher.backbones[0].maps[0].strides, teacher.backbones[0].maps[0].channels) == (strides, channels)
    images = torch.rand(2, 3, 64, 96)
    model = timm.create_model(name, **({"dynamic_img_size": True} if "vit" in name else {})).eval()
    model.load_state_dict(torch.load(weights(name).partition("@")[2]))
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = model.forward_intermediates((images - mean) / std, norm=True, intermediates_only=True)
    answer = teacher(images)
    torch.testing.assert_close(answer.features[0][-1], expected[-1], rtol=1e-4, atol=1e-4)
    assert [m.shape[-2:] for m in answer.features[0]] == [(64 // s, 96 // s) for s in strides]
    assert not len(answer.bboxes) and not answer.features[0][0].requires_grad


def test_mirrored_images_have_features_of_their_own(weights):
    """Those are not the mirrored features, so they are computed on the augmented batch."""
    teacher, images = prepared(weights("test_vit")), torch.rand(1, 3, 64, 64)
    mirrored, plain = (teacher(x).features[0][0] for x in (images.flip(3), images))
    assert (mirrored - plain.flip(3)).abs().max() > 1e-2


def test_sizes_that_a_model_cannot_read_are_resized(weights):
    teacher = prepared(weights("test_vit"))
    backbone = teacher.backbones[0]
    assert teacher(torch.rand(1, 3, 70, 90)).features[0][0].shape[-2:] == (4, 6)
    backbone.size = (160, 160)
    assert teacher(torch.rand(1, 3, 64, 64)).features[0][0].shape[-2:] == (10, 10)


def test_a_model_that_reads_no_larger_images_gets_them_resized(weights, monkeypatch):
    probe = BackboneTeacher._probe

    def limited(backbone, size):
        """Fail for an image that is larger than the model's own."""
        if max(size) > 160:
            raise IndexError("index 111 is out of bounds")
        return probe(backbone, size)

    monkeypatch.setattr(BackboneTeacher, "_probe", limited)
    teacher = prepared(weights("test_vit"))
    assert teacher.backbones[0].size == (160, 160)
    assert teacher(torch.rand(1, 3, 320, 256)).features[0][0].shape[-2:] == (10, 10)


@pytest.mark.parametrize("imgsz, strides", [(160, (2, 4, 8, 16, 32)), (320, (4, 8, 16, 32, 64))])
def test_a_model_of_one_size_teaches_the_levels_of_its_strides_in_the_students_pixels(weights, imgsz, strides):
    teacher = prepared(weights("test_resnet"))
    assert backbones_of(teacher, imgsz).maps[0].strides == (2, 4, 8, 16, 32)  # it reads any size
    teacher.backbones[0].size = (160, 160)
    assert backbones_of(teacher, imgsz).maps[0].strides == strides


def test_a_model_that_cannot_normalise_its_maps_gives_them_as_they_are(weights, monkeypatch):
    model = type(timm.create_model("test_vit"))
    stock = model.forward_intermediates

    def refusing(self, *args, norm=False, **kwargs):
        assert not norm, "normalization of features not supported"
        return stock(self, *args, norm=norm, **kwargs)

    monkeypatch.setattr(model, "forward_intermediates", refusing)
    answer = prepared(weights("test_vit"))(torch.rand(1, 3, 64, 64))
    assert answer.features[0][0].shape == (1, 64, 4, 4)


def test_weights_of_flax_whose_loader_returns_nothing_are_taken(weights, monkeypatch):
    loaded = []
    monkeypatch.setattr(timm.models, "load_checkpoint", lambda model, file, **_: loaded.append(file))
    open_teacher(weights("test_vit"), "detect")
    assert loaded


def test_grey_images_are_three_equal_channels(weights):
    teacher, image = open_teacher(weights("test_vit"), "detect"), torch.rand(1, 1, 64, 64)
    match_channels(teacher, 1)
    grey = teacher.prepare(CPU)(image).features[0][0]
    torch.testing.assert_close(grey, prepared(weights("test_vit"))(image.expand(-1, 3, -1, -1)).features[0][0])


def test_each_map_teaches_the_level_of_the_nearest_stride():
    assert nearest_levels((8, 16, 32), (14,)) == {1: 0}
    assert nearest_levels((8, 16, 32), (4, 8, 16, 32)) == {0: 1, 1: 2, 2: 3}
    assert nearest_levels((16, 32), (4, 8)) == {0: 1}
    assert nearest_levels((0,), (8, 16)) == {0: 1}


def test_term_is_the_cosine_distance_behind_a_convolution():
    term = BackboneTerm(
        FeatureLayout((8, 16), (4, 6)), [FeatureLayout((16,), (5,)), FeatureLayout((8,), (3,))], (0.25, 0.75)
    )
    student = [torch.rand(2, 4, 8, 8, requires_grad=True), torch.rand(2, 6, 4, 4, requires_grad=True)]
    first, second = torch.rand(2, 5, 6, 6), torch.rand(2, 3, 8, 8)
    value = term(FeaturePair(student, [[first], [second]]))
    small = F.interpolate(first, (4, 4), mode="bilinear", antialias=True)
    expected = 0.25 * (1 - F.cosine_similarity(term.adapters[0](student[1]), small).mean())
    expected = expected + 0.75 * (1 - F.cosine_similarity(term.adapters[1](student[0]), second).mean())
    torch.testing.assert_close(value, expected)
    value.backward()
    assert all(x.grad.any() for x in (*student, *term.adapters.parameters()))


# In a run -------------------------------------------------------------------------------------------------------------
class Seen(KDDetectionTrainer):
    """Keeps the images that a backbone and the student were given."""

    def _setup_train(self):
        super()._setup_train()
        self.asked, self.given = [], []
        backbone = self.teacher.backbones[0]
        stock = backbone._run
        backbone._run = lambda images: (self.asked.append(images.clone()), stock(images))[1]

    def preprocess_batch(self, batch):
        batch = super().preprocess_batch(batch)
        self.given.append(batch["img"].clone())
        return batch


def test_backbone_beside_a_detector_teaches_by_features_and_nothing_of_it_ships(weights, teacher, quick):
    student = YOLO(STUDENT)
    sources = [teacher, weights("test_resnet")]
    student.train(**{**quick, "epochs": 1}, teacher=sources, kd_teacher_weights=[2, 1], trainer=Seen)
    trainer = student.trainer
    items = trainer.loss_items
    assert items["kd_cls"] > 0 and items["kd_box"] > 0 and 0 < items["kd_feat"] < 2
    assert trainer.args.kd_feat == 1.0 and len(trainer.distiller.adapters["kd_feat"]) == 3
    asked = {x.sum().item() for x in trainer.asked}
    assert all(x.sum().item() in asked for x in trainer.given)
    saved = torch_load(trainer.best)["model"]
    assert type(saved) is DetectionModel and [*saved.state_dict()] == [*YOLO(STUDENT).model.state_dict()]
    assert trainer.teacher_metrics and trainer.args.teacher == [str(Path(teacher).resolve()), sources[1]]


def test_backbone_alone_teaches_every_level_that_it_reaches_and_goes_on(weights, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("w.pth").write_bytes(Path(weights("test_vit").partition("@")[2]).read_bytes())
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda trainer: (_ for _ in ()).throw(SystemError("cut")))
    with pytest.raises(SystemError):
        model.train(**quick, teacher="timm:test_vit@w.pth")
    args = YAML.load(tmp_path / "runs/run/args.yaml")
    assert args["teacher"] == f"timm:test_vit@{tmp_path / 'w.pth'}" and not args["kd_cls"] and not args["kd_box"]
    before = torch_load(tmp_path / "runs/run/weights/last.pt")["optimizer"]["kd_adapters"]
    monkeypatch.chdir("/")
    again = YOLO(tmp_path / "runs/run/weights/last.pt")
    again.add_callback("on_train_start", lambda trainer: loaded.update(trainer.distiller.adapters.state_dict()))
    loaded: dict = {}
    again.train(resume=True)
    assert again.trainer.epoch == 1 and again.trainer.loss_items["kd_feat"] > 0
    assert "kd_cls" not in again.trainer.loss_items and set(loaded) == set(before)
    assert not again.trainer.teacher_metrics


@pytest.mark.nightly
@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify", "semantic", "depth"])
def test_every_task_learns_features(task, weights, tmp_path, monkeypatch):
    if task not in config.TASKS:
        pytest.skip("this release lacks the task")
    from task_models import SUFFIX

    student = YOLO(f"yolo26n{SUFFIX[task]}.yaml")
    args = {**QUICK, "epochs": 1, "data": str(draw_task_dataset(tmp_path / "set", task, 6, 3, 64))}
    if task == "classify":  # with classes it would be a classifier, as ever
        monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: SimpleNamespace(num_classes=0))
    student.train(**args, teacher=weights("test_resnet"), project=str(tmp_path / "runs"))
    assert 0 < student.trainer.loss_items["kd_feat"] < 2


@pytest.mark.nightly
def test_two_processes_learn_features_with_equal_adapters(weights, tmp_path, data, teacher):
    from test_ddp import ARGS, launching, read

    with launching(tmp_path):
        args = {**ARGS, "project": str(tmp_path / "runs"), "name": "run"}
        YOLO("yolo26n.yaml").train(**args, data=data, teacher=[teacher, weights("test_vit")])
    first, second = read(tmp_path)
    for record in (first, second):
        assert all(step["items"]["kd_feat"] > 0 for step in record["steps"])
    assert torch.equal(first["student"], second["student"])


# What cannot be -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "source, message",
    [
        ("timm:vit_small_patch16_dino3", r"no model 'vit_small_patch16_dino3' \(did you mean vit_small_patch16_dino"),
        ("timm:test_vit@none.pth", "names weights in none.pth, which is no file"),
    ],
)
def test_unknown_names_and_files_are_one_sentence(source, message):
    with pytest.raises(KDError, match=message) as error:
        open_teacher(source, "detect")
    assert "\n" not in str(error.value)


def test_weights_of_another_model_are_refused(weights, tmp_path):
    file = weights("test_resnet").partition("@")[2]
    with pytest.raises(KDError, match=r"lacks .* of its weights, such as"):
        open_teacher(f"timm:test_vit@{file}", "detect")


def test_file_runs_no_code(tmp_path):
    class Runs:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Runs()}, tmp_path / "bad.pth")
    with pytest.raises(KDError, match="could not be loaded from timm"):
        open_teacher(f"timm:test_vit@{tmp_path / 'bad.pth'}", "detect")
    assert not (tmp_path / "ran").exists()


def test_backbone_without_maps_is_one_sentence(weights, monkeypatch):
    from timm.models.vision_transformer import VisionTransformer

    monkeypatch.delattr(VisionTransformer, "forward_intermediates")
    with pytest.raises(KDError, match="is a backbone without maps"):
        open_teacher(weights("test_vit"), "detect")


def test_timm_that_is_missing_is_one_sentence(monkeypatch):
    stock = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "timm":
            raise ImportError("No module named 'timm'")
        return stock(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(KDError, match=r"needs timm, which is not installed: pip install timm"):
        open_teacher("timm:test_vit", "detect")


def test_what_features_cannot_do_is_one_sentence(weights, quick, teacher, data, tmp_path):
    source = weights("test_vit")
    with pytest.raises(KDError, match=r"'kd_cache' stores detections, and teacher=timm:test_vit.* teaches by features"):
        YOLO(STUDENT).train(**quick, teacher=[teacher, source], kd_cache=True)
    with pytest.raises(KDError, match="teaches by features, and a cache stores detections"):
        make_cache({"data": data, "teacher": source, "kd_cache": str(tmp_path / "answers")})
    with pytest.raises(KDError, match="'kd_feat=0' leaves the backbones among the teachers"):
        YOLO(STUDENT).train(**quick, teacher=[teacher, source], kd_feat=0)
    with pytest.raises(KDError, match="'kd_feat_loss=cwd' has no effect beside a backbone"):
        YOLO(STUDENT).train(**quick, teacher=source, kd_feat_loss="cwd")
    photos = str(Path(data).parent / "images/train")
    with pytest.raises(KDError, match=r"'kd_unlabeled_boxes=True' needs boxes, and teacher=.* has features alone"):
        YOLO(STUDENT).train(**quick, teacher=source, kd_unlabeled=photos, kd_unlabeled_boxes=True)
    described = YAML.load(data)
    YAML.save(tmp_path / "names.yaml", {k: described[k] for k in ("path", "val", "names")})
    alone = {"data": str(tmp_path / "names.yaml"), "kd_unlabeled": str(Path(described["path"]) / "images/train")}
    with pytest.raises(KDError, match=r"teaches by features alone, and data=.* nothing would teach the head"):
        YOLO(STUDENT).train(**{**quick, **alone}, teacher=source)
    assert not (tmp_path / "runs/run").exists()


def test_bench_knows_it_by_its_weights_and_scores_no_teacher(weights, data, tmp_path):
    bench = Bench(SimpleNamespace(task="detect"), data, None)
    found = bench._resolve(weights("test_vit"), False, "auto")
    assert found["scored"] is None and found["path"] == weights("test_vit")
    detector = bench._resolve(str(save_model(tmp_path / "t.pt", STUDENT)), False, "auto")
    assert detector["scored"] == {key: detector[key] for key in ("path", "sha256")}
