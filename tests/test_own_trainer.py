"""Trainers, models, validators and callbacks of the user's own: the run distils, or stops before its first step."""

from __future__ import annotations

import inspect
from copy import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import QUICK, STUDENT
from test_training import results
from ultralytics.data.build import build_dataloader, build_yolo_dataset
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import E2ELoss

from ultralytics_kd import YOLO, KDDetectionTrainer, KDError
from ultralytics_kd.cache import make_cache
from ultralytics_kd.distillation.loss import DistillationLoss
from ultralytics_kd.training.mixin import DistillationMixin

TERMS = ("kd_cls", "kd_box", "kd_feat")
PUBLIC = sorted(
    name
    for name, member in inspect.getmembers(KDDetectionTrainer, callable)
    if not name.startswith("_") and not isinstance(member, type)
)
REFUSED = {"check_resume": r"check_resume must call super\(\)\.check_resume\(overrides\)"}  # without super()


def train(quick: dict, trainer: type, callbacks: dict | None = None, **more) -> list[dict[str, float]]:
    """Train for an epoch with all terms, and return the rows of results.csv without their time."""
    model = YOLO(more.pop("model", STUDENT))
    for event, callback in (callbacks or {}).items():
        model.add_callback(event, callback)
    model.train(**{**quick, "epochs": 1, "kd_feat": 1.0, **more}, trainer=trainer)
    return [{k: v for k, v in row.items() if k != "time"} for row in results(Path(model.trainer.save_dir))]


def overriding(name: str, with_super: bool) -> type:
    """Return a trainer of the user's with one method of its own, which calls super() or does what Ultralytics does."""

    def method(self, *args, **kwargs):
        owner = super(Mine, self) if with_super else DetectionTrainer
        return getattr(owner, name)(*(() if with_super else (self,)), *args, **kwargs)

    Mine = type("Mine", (KDDetectionTrainer,), {name: method, "__module__": "mine"})
    return Mine


@pytest.fixture(scope="module")
def stock(tmp_path_factory, data, teacher) -> list[dict[str, float]]:
    """Return the results of the package's own trainer."""
    args = {**QUICK, "data": data, "teacher": teacher, "project": str(tmp_path_factory.mktemp("stock")), "name": "run"}
    return train(args, KDDetectionTrainer)


@pytest.fixture(scope="module")
def store(tmp_path_factory, data, teacher) -> str:
    """Return a cache of the teacher's answers."""
    folder = str(tmp_path_factory.mktemp("store") / "cache")
    make_cache({"teacher": teacher, "kd_cache": folder, "data": data, "imgsz": 64, "device": QUICK["device"]})
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize("with_super", [True, False])
@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_method_can_be_overridden(quick, teacher, stock, name, with_super):
    """The student learns the same, to the last digit, or the run is refused with a sentence."""
    if not with_super and name in REFUSED:
        with pytest.raises(KDError, match=REFUSED[name]):
            train(quick, overriding(name, with_super), teacher=teacher)
        return
    assert train(quick, overriding(name, with_super), teacher=teacher) == stock


@pytest.mark.slow
def test_a_trainer_that_stands_alone_at_every_step_of_a_batch_distils_the_same(quick, teacher, stock):
    """The methods that people replace most, all at once, each as Ultralytics has it."""
    names = ("get_model", "preprocess_batch", "build_optimizer", "get_validator", "get_dataloader", "build_dataset")
    methods = {name: vars(overriding(name, with_super=False))[name] for name in names}
    Mine = type("Mine", (KDDetectionTrainer,), {**methods, "__module__": "mine"})
    seen = {}
    rows = train(quick, Mine, {"on_train_start": lambda t: seen.update(initialized=t.initialized)}, teacher=teacher)
    assert rows == stock and seen["initialized"]
    assert all(rows[0][f"{part}/{term}"] > 0 for part in ("train", "val") for term in TERMS)


@pytest.mark.slow
def test_a_loss_and_an_optimizer_that_callbacks_set_keep_terms_and_adapters(quick, teacher):
    before, after = {}, {}

    class Mine(DetectionValidator):
        pass

    def start(trainer):
        trainer.model.criterion = E2ELoss(trainer.model)
        trainer.optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=0.001)
        trainer.validator = Mine(trainer.test_loader, trainer.save_dir, copy(trainer.args), trainer.callbacks)
        before.update({k: v.clone() for k, v in trainer.distiller.adapters.state_dict().items()})

    def end(trainer):
        after.update({k: v.clone() for k, v in trainer.distiller.adapters.state_dict().items()})

    rows = train(quick, KDDetectionTrainer, {"on_train_start": start, "on_train_epoch_end": end}, teacher=teacher)
    assert all(rows[0][f"{part}/{term}"] > 0 for part in ("train", "val") for term in TERMS)
    assert before and all(not torch.equal(v, after[k]) for k, v in before.items())


class Mirrors(KDDetectionTrainer):
    """Augments after the package has prepared the batch, as people do on a GPU."""

    def preprocess_batch(self, batch):
        batch = super().preprocess_batch(batch)
        batch["img"] = batch["img"].flip(-1)
        batch["bboxes"][:, 0] = 1 - batch["bboxes"][:, 0]
        return batch


class Drops(KDDetectionTrainer):
    """Keeps only the entries of a batch that it knows."""

    def preprocess_batch(self, batch):
        batch = super().preprocess_batch(batch)
        return {k: batch[k] for k in ("img", "cls", "bboxes", "batch_idx", "im_file", "ori_shape", "ratio_pad")}


class Alone(KDDetectionTrainer):
    """Prepares the batch itself."""

    def preprocess_batch(self, batch):
        return DetectionTrainer.preprocess_batch(self, batch)


class OwnDataset(KDDetectionTrainer):
    """Builds data set and loader itself."""

    def get_dataloader(self, dataset_path, batch_size=16, rank=0, mode="train"):
        dataset = build_yolo_dataset(self.args, dataset_path, batch_size, self.data, mode=mode, rect=mode == "val")
        return build_dataloader(dataset, batch_size, workers=0, shuffle=mode == "train", rank=rank)


def test_the_teacher_answers_the_images_that_the_student_sees(quick):
    """Each training image is answered once, as it enters the student."""
    asked, shown = [], []

    class Teacher:
        names = ("disc", "box", "bar")

        def teach(self, images):
            asked.append(images.clone())
            box = torch.tensor([[4.0, 4.0, 24.0, 24.0]])
            one = {"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
            return {"detections": [one for _ in images]}

    class Looks(Mirrors):
        def preprocess_batch(self, batch):
            batch = super().preprocess_batch(batch)
            shown.append(batch["img"].clone())
            return batch

    train(quick, Looks, teacher=Teacher(), kd_feat=0, val=False)
    assert len(shown) == 2 and all(torch.equal(a, b) for a, b in zip(asked, shown))


@pytest.mark.nightly
def test_stored_answers_reach_a_data_set_of_ones_own_or_the_run_stops_with_a_sentence(quick, teacher):
    args = {"teacher": teacher, "kd_feat": 0, "kd_cache": True}
    runs = [train(quick, each, name=each.__name__, **args) for each in (KDDetectionTrainer, OwnDataset, Alone)]
    assert runs[0][0]["train/kd_cls"] > 0 and runs[1:] == runs[:1] * 2
    for trainer, message in ((Mirrors, "changes the labels' boxes"), (Drops, "drops the stored answers")):
        with pytest.raises(
            KDError, match=rf"kd_cache: {trainer.__name__}\.preprocess_batch {message}.*without kd_cache"
        ):
            train(quick, trainer, name=trainer.__name__, **args)
        assert not Path(quick["project"], trainer.__name__).exists()


class Inserts(KDDetectionTrainer):
    """Adds a transform behind those that carry the stored answers."""

    def build_dataset(self, img_path, mode="train", batch=None):
        dataset = super().build_dataset(img_path, mode, batch)
        if mode == "train":
            dataset.transforms.insert(0, lambda labels: labels)
        return dataset


class Collates(KDDetectionTrainer):
    """Collates samples in its own way."""

    def get_dataloader(self, *args, **kwargs):
        loader = super().get_dataloader(*args, **kwargs)
        stock = loader.collate_fn
        loader.collate_fn = lambda samples: stock(samples[::-1])
        return loader


class Replaces(KDDetectionTrainer):
    """Replaces a method of the data set."""

    def build_dataset(self, img_path, mode="train", batch=None):
        dataset = super().build_dataset(img_path, mode, batch)
        dataset.get_image_and_label = dataset.get_image_and_label
        return dataset


@pytest.mark.parametrize(
    "trainer, message",
    [
        (Inserts, "kd_cache does not support the augmentation 'function'"),
        (Collates, "collates samples with the data set's own collate_fn"),
        (Replaces, "a data set whose get_image_and_label was replaced"),
    ],
)
def test_code_in_the_way_of_stored_answers_is_refused(quick, teacher, store, trainer, message):
    with pytest.raises(KDError, match=message):
        train(quick, trainer, teacher=teacher, kd_feat=0, kd_cache=store)


def test_stored_answers_that_a_callback_takes_away_end_the_run_with_a_sentence(quick, teacher, store):
    def replace(trainer):
        dataset = build_yolo_dataset(trainer.args, trainer.data["train"], 4, trainer.data)
        trainer.train_loader = build_dataloader(dataset, 4, workers=0)

    with pytest.raises(KDError, match=r"kd_cache: code around the data loader drops the stored answers"):
        train(quick, KDDetectionTrainer, {"on_train_start": replace}, teacher=teacher, kd_feat=0, kd_cache=store)


class OwnLoss(DetectionModel):
    """A model that never asks its criterion."""

    def loss(self, batch, preds=None):
        return E2ELoss(self)(self.forward(batch["img"]) if preds is None else preds, batch)


class OwnAugmentation(DetectionModel):
    """A model that shows itself other images than the batch holds."""

    def loss(self, batch, preds=None):
        return super().loss(batch, self.forward(batch["img"].flip(-1)) if preds is None else preds)


class OwnParts(DetectionModel):
    """A model that weights the parts of its loss that it knows, and drops the others."""

    def loss(self, batch, preds=None):
        loss, items = super().loss(batch, preds)
        return loss[:3] * torch.tensor([1.0, 0.5, 1.0]), items


class OwnTensors(DetectionModel):
    """A model whose criterion returns its parts as a tensor, as those of older Ultralytics did."""

    def init_criterion(self):
        stock = super().init_criterion()
        return lambda preds, batch: (loss := stock(preds, batch)[0], loss.detach())


def detached(student, teacher, weight, avg_factor):
    """A box loss that teaches nothing."""
    return ((student - teacher).abs().mean(-1) * weight).sum().detach() / avg_factor


@pytest.mark.parametrize(
    "model, more, message",
    [
        (OwnLoss, {}, r"loss was computed without model\.criterion.*return self\.criterion\(preds, batch\)"),
        (OwnAugmentation, {}, r"teacher answered other images than the student saw.*batch\['img'\]"),
        (OwnParts, {}, r"kd_cls and kd_box and kd_feat did not enter the loss.*must return all parts"),
        (OwnTensors, {}, r"returned its parts as a Tensor: a loss returns .* a dict of their values by name"),
        (DetectionModel, {"kd_box_loss": "test_own_trainer:detached"}, r"kd_box has no gradient.*set kd_box=0"),
        (DetectionModel, {"freeze": 5}, r"kd_feat has no gradient.*free the layers that it trains \(freeze\)"),
    ],
)
def test_a_first_step_that_would_not_distil_is_refused(quick, teacher, model, more, message):
    class Mine(KDDetectionTrainer):
        def get_model(self, cfg=None, weights=None, verbose=True):
            return model(cfg, nc=self.data["nc"], ch=self.data["channels"], verbose=False)

    with pytest.raises(KDError, match=message):
        train(quick, Mine, teacher=teacher, **more)
    assert not Path(quick["project"], "run").exists()


@pytest.mark.parametrize("factor", [255.0, 1 / 255])
def test_images_of_another_scale_are_warned_of(quick, teacher, caplog, factor):
    class Scales(KDDetectionTrainer):
        def preprocess_batch(self, batch):
            batch = super().preprocess_batch(batch)
            return {**batch, "img": batch["img"] * factor}

    def stop(trainer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(quick, Scales, {"on_train_epoch_end": stop}, teacher=teacher, kd_feat=0)
    assert "the teacher expects images in [0, 1]" in caplog.text


def test_a_loss_that_is_replaced_later_ends_the_run_in_that_epoch(quick, teacher):
    def replace(trainer):
        if trainer.epoch == 1:
            trainer.model.loss = lambda batch, preds=None: E2ELoss(trainer.model)(trainer.model(batch["img"]), batch)

    with pytest.raises(KDError, match=r"trains without its teacher|not among the parts of the loss"):
        train(quick, KDDetectionTrainer, {"on_train_epoch_start": replace}, teacher=teacher, epochs=3)


class OwnSchedule(KDDetectionTrainer):
    """Sets its own groups and its own schedule of each."""

    def build_optimizer(self, model, name="auto", lr=0.001, momentum=0.9, decay=1e-5, iterations=1e5):
        halves = [list(part.parameters()) for part in (model.model[:3], model.model[3:])]
        return torch.optim.AdamW([{"params": p, "lr": lr * f} for p, f in zip(halves, (0.1, 1.0))])

    def _setup_scheduler(self):
        self.lf = lambda epoch: 1.0
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, [self.lf, self.lf])


@pytest.mark.slow
def test_groups_and_schedules_of_ones_own_train_adapters_at_the_highest_rate_and_are_resumed(quick, teacher):
    seen = {}

    def end(trainer):
        adapters = {id(p) for p in trainer.distiller.adapters.parameters()}
        seen["groups"] = [(g["lr"], adapters <= {id(p) for p in g["params"]}) for g in trainer.optimizer.param_groups]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(quick, OwnSchedule, {"on_model_save": end}, teacher=teacher, epochs=2)
    assert [has for _, has in sorted(seen["groups"])] == [False, True] and len(seen["groups"]) == 2
    last = Path(quick["project"], "run", "weights", "last.pt")
    with pytest.raises(KDError, match=r"other parameter groups than this trainer's.*trainer=MyTrainer"):
        YOLO(last).train(resume=True)
    YOLO(last).train(resume=True, trainer=OwnSchedule)
    assert [row["epoch"] for row in results(last.parents[1])] == [1, 2]


def test_a_wrong_order_of_bases_is_an_error_where_the_class_is_written():
    with pytest.raises(KDError, match=r"class Wrong: DistillationMixin must stand before the trainer"):
        type("Wrong", (DetectionTrainer, DistillationMixin), {})


def test_a_setup_without_the_package_and_a_teacher_that_comes_late_are_errors(quick, teacher):
    class Alone(KDDetectionTrainer):
        def _setup_train(self):
            DetectionTrainer._setup_train(self)

    with pytest.raises(KDError, match=r"_setup_train must call super\(\)\._setup_train\(\)"):
        train(quick, Alone, teacher=teacher)
    trainer = KDDetectionTrainer(overrides={**quick, "model": STUDENT})
    trainer.args.teacher = teacher
    with pytest.raises(KDError, match=r"args\.teacher was set after the trainer was built"):
        trainer.train()


def test_a_callback_reads_and_sets_attributes_of_the_base_loss():
    base = SimpleNamespace(o2m=0.8, o2o=0.2, one2many=None, one2one=None)
    loss = DistillationLoss(base, SimpleNamespace(), None)
    loss.o2m = 0.5
    assert base.o2m == loss.o2m == 0.5 and loss.gains["one2many"] == 0.5
    with pytest.raises(AttributeError):
        loss.unknown  # noqa: B018


def test_a_trainer_that_drops_images_without_labels_is_refused(quick, teacher, data):
    with pytest.raises(KDError, match=r"kd_unlabeled: Alone\.preprocess_batch must call super\(\)"):
        train(quick, Alone, teacher=teacher, kd_unlabeled=str(Path(data).parent / "images" / "val"))
