"""Whole trainings, as a user runs them, and what they leave behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import NAMES, STUDENT, TEACHER, make_model, save_model
from ultralytics import YOLO as StockYOLO
from ultralytics.cfg import get_cfg
from ultralytics.utils import LOGGER, YAML
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO, KDDetectionTrainer, KDError
from ultralytics_kd.distillation.terms.feature import mask_states
from ultralytics_kd.install import install
from ultralytics_kd.teachers import open_teacher
from ultralytics_kd.training.run.teacher_source import TeacherSource
from ultralytics_kd.training.scores import evaluation, scoring

KD = {"kd_cls": 0.7, "kd_feat": 1.0}


def results(run: Path) -> list[dict[str, float]]:
    """Return the rows of a run's results.csv."""
    header, *rows = [line.split(",") for line in (run / "results.csv").read_text().splitlines()]
    return [dict(zip(header, map(float, row))) for row in rows]


def weights(file: Path) -> dict[str, torch.Tensor]:
    """Return the weights in a checkpoint."""
    return torch_load(file)["model"].state_dict()


@pytest.fixture(scope="module")
def run(tmp_path_factory, data, teacher) -> Path:
    """Return the folder of a finished distillation with all terms on and plots; its first last.pt is kept beside it."""
    from conftest import QUICK

    project = tmp_path_factory.mktemp("runs")
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda t: t.epoch or shutil.copy2(t.last, project / "midway.pt"))
    model.train(**{**QUICK, "plots": True}, **KD, data=data, teacher=teacher, project=str(project))
    return project / "train"


@pytest.mark.core
def test_log_has_the_kd_columns_of_train_and_val_side_by_side(run):
    rows = results(run)
    assert len(rows) == 2
    for side in ("train", "val"):
        assert all(row[f"{side}/{term}"] > 0 for row in rows for term in ("kd_cls", "kd_box", "kd_feat"))
    columns = [c for c in rows[0] if c.startswith("train/")]
    assert [c.removeprefix("train/") for c in columns] == [
        "box_loss",
        "cls_loss",
        "l1_loss",
        "kd_cls",
        "kd_box",
        "kd_feat",
    ]


@pytest.mark.core
def test_plot_of_results_is_made_and_bigger_with_the_kd_columns(run, tmp_path):
    import cv2
    from ultralytics.utils.plotting import plot_results

    header, *rows = [line.split(",") for line in (run / "results.csv").read_text().splitlines()]
    keep = [i for i, name in enumerate(header) if "kd_" not in name]
    text = "\n".join(",".join(row[i] for i in keep) for row in (header, *rows))
    (tmp_path / "results.csv").write_text(text)
    plot_results(tmp_path / "results.csv")
    with_kd, without = (cv2.imread(str(p / "results.png")) for p in (run, tmp_path))
    assert with_kd.shape[1] > without.shape[1]  # three more columns of curves
    assert not list(run.glob("results*.csv"))[1:]


def test_a_term_that_is_off_is_not_plotted(run, tmp_path):
    import cv2

    widths = []
    for on in (("kd_cls", "kd_box", "kd_feat"), ("kd_cls", "kd_box")):
        trainer = SimpleNamespace(
            csv=run / "results.csv",
            distillation=SimpleNamespace(distiller=SimpleNamespace(terms=on)),
            save_dir=tmp_path,
            on_plot=lambda file: None,
        )
        KDDetectionTrainer.plot_metrics(trainer)
        widths.append(cv2.imread(str(tmp_path / "results.png")).shape[1])
    assert widths[0] > widths[1]


@pytest.mark.core
def test_arguments_are_saved_with_the_run_and_in_the_checkpoint(run, teacher):
    saved, ckpt = YAML.load(run / "args.yaml"), torch_load(run / "weights" / "best.pt")
    for args in (saved, ckpt["train_args"]):
        assert args["teacher"] == teacher
        assert (args["kd_cls"], args["kd_box"], args["kd_feat"]) == (0.7, 8.0, 1.0)
        assert args["kd_feat_loss"] == "pkd"


@pytest.mark.core
def test_checkpoint_holds_a_plain_student_and_nothing_else(run, data, quick):
    StockYOLO(STUDENT).train(**quick)
    alone = Path(quick["project"]) / "run" / "weights" / "best.pt"
    ckpt, plain = torch_load(run / "weights" / "best.pt"), torch_load(alone)
    assert type(ckpt["model"]) is type(plain["model"])
    assert ckpt["model"].state_dict().keys() == plain["model"].state_dict().keys()
    assert ckpt["optimizer"] is None and getattr(ckpt["model"], "criterion", None) is None
    size, plain_size = ((p / "weights" / "best.pt").stat().st_size for p in (run, alone.parents[1]))
    assert size == pytest.approx(plain_size, rel=0.01)


def test_checkpoint_works_where_the_plugin_cannot_be_imported(run, data, tmp_path):
    """It loads (also with the restricted loader), predicts, validates with the same mAP and exports."""
    code = f"""
import sys
sys.modules["ultralytics_kd"] = None
from ultralytics import YOLO
for name in ("best", "last"):
    model = YOLO(r"{run}/weights/" + name + ".pt")
    model.predict(r"{Path(data).parent}/images/val/0.png", imgsz=64, verbose=False, project=r"{tmp_path}")
    print("mAP", name, model.val(data=r"{data}", imgsz=64, plots=False, verbose=False, project=r"{tmp_path}").box.map)
model.export(format="onnx", imgsz=64)
assert not any(m.startswith("ultralytics_kd.") for m in sys.modules)
"""
    maps = []
    for safe in ("0", "1"):
        import os

        env = {**os.environ, "ULTRALYTICS_SAFE_LOAD": safe}
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
        assert out.returncode == 0, out.stderr[-2000:]
        maps.append([line for line in out.stdout.splitlines() if line.startswith("mAP")])
    here = YOLO(run / "weights" / "best.pt").val(data=data, imgsz=64, plots=False, verbose=False).box.map
    assert maps[0] == maps[1] and maps[0][0] == f"mAP best {here}"
    assert (run / "weights" / "last.onnx").stat().st_size > 1e5


@pytest.mark.core
def test_checkpoint_of_a_run_that_goes_on_holds_neither_teacher_nor_loss(run):
    """It unpickles without this package: the adapters, the teacher's hash and the random states are plain data."""
    code = f"""
import sys
sys.modules["ultralytics_kd"] = None
import torch
ckpt = torch.load(r"{run.parent}/midway.pt", map_location="cpu", weights_only=False)
print("STATE", ckpt["epoch"], getattr(ckpt["ema"], "criterion", None), len(ckpt["optimizer"]["kd_run"]["teachers"][0]))
assert ckpt["optimizer"]["kd_adapters"]
assert not any(m.startswith("ultralytics_kd.") for m in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=run.parent, check=False)
    assert "STATE 0 None 64" in out.stdout, out.stderr[-2000:]


@pytest.mark.core
def test_without_a_teacher_training_is_ultralytics_own_bit_for_bit(quick):
    StockYOLO(STUDENT).train(**{**quick, "name": "stock"})
    YOLO(STUDENT).train(**{**quick, "name": "plain"})
    stock, plain = (weights(Path(quick["project"]) / n / "weights" / "last.pt") for n in ("stock", "plain"))
    assert all(torch.equal(stock[k], plain[k]) for k in stock)


def test_distillation_repeats_bit_for_bit(quick, teacher):
    for name in ("a", "b"):
        YOLO(STUDENT).train(**{**quick, **KD, "name": name, "teacher": teacher, "epochs": 1})
    a, b = (weights(Path(quick["project"]) / n / "weights" / "last.pt") for n in ("a", "b"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_files_beside_an_object_in_a_list_of_teachers_are_kept_by_absolute_paths(teacher, tmp_path, monkeypatch):
    """The run may be resumed from another folder."""
    monkeypatch.chdir(Path(teacher).parent)
    source = TeacherSource([Path(teacher).name, StockYOLO(teacher)])
    opened = open_teacher(source.value, "detect")
    run = SimpleNamespace(ddp=False, args=get_cfg(), wdir=tmp_path, save_dir=tmp_path)
    source.save_beside(run, opened)
    assert run.args.teacher == [str(Path(teacher).resolve()), str(tmp_path / "teacher-1.pt")]


@pytest.mark.parametrize("kind", ["YOLO", "module"])
def test_teacher_in_memory_stays_as_it_was_and_is_kept_beside_the_run(quick, teacher, kind):
    """Frozen, BatchNorm statistics included; not in optimizer, EMA or checkpoint."""
    source = StockYOLO(teacher)
    before = {k: v.clone() for k, v in source.model.state_dict().items()}
    model = YOLO(STUDENT)
    seen = {}

    def look(trainer):
        own = {id(p) for p in trainer.teacher.model.parameters()}
        groups = {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
        adapters = {id(p) for p in trainer.distiller.adapters.parameters()}
        seen["clean"] = not own & groups and adapters <= groups
        seen["grad"] = any(p.requires_grad for p in trainer.teacher.model.parameters())
        seen["keys"] = trainer.ema.ema.state_dict().keys() == trainer.model.state_dict().keys()
        seen["training"] = trainer.teacher.model.training

    model.add_callback("on_train_epoch_end", look)
    model.train(**quick, **KD, teacher=source if kind == "YOLO" else source.model)
    assert seen == {"clean": True, "grad": False, "keys": True, "training": False}
    assert all(torch.equal(v, before[k]) for k, v in source.model.state_dict().items())
    kept = Path(quick["project"]) / "run" / "weights" / "teacher.pt"
    assert YAML.load(kept.parents[1] / "args.yaml")["teacher"] == str(kept)
    state = torch_load(kept)["model"].state_dict()
    assert all(torch.equal(v, before[k]) for k, v in state.items())


def test_teachers_batchnorm_survives_training_unfused(quick, teacher):
    """The teacher in use has no BatchNorm left; the one it was made from has, untouched."""
    model, seen = YOLO(STUDENT), {}

    def look(trainer):  # afterwards it is gone
        seen.update(original=trainer.teacher.original.state_dict(), used=trainer.teacher.model.state_dict())

    model.add_callback("on_train_end", look)
    model.train(**quick, teacher=teacher)
    on_disk = torch_load(teacher)["model"].float().state_dict()
    assert any("running_mean" in k for k in seen["original"])
    assert all(torch.equal(v, seen["original"][k]) for k, v in on_disk.items())
    assert not any("running_mean" in k for k in seen["used"])


@pytest.mark.parametrize("optimizer", ["MuSGD", "SGD", "auto"])
def test_adapters_train_with_every_kind_of_optimizer(quick, teacher, optimizer):
    seen = []
    model = YOLO(STUDENT)

    def keep(trainer):
        seen.append([p.detach().clone() for p in trainer.distiller.adapters.parameters()])

    model.add_callback("on_train_start", keep)
    model.add_callback("on_train_epoch_end", keep)
    model.train(**{**quick, "optimizer": optimizer, "epochs": 1, "nbs": 4}, **KD, teacher=teacher)
    assert all(not torch.equal(a, b) for a, b in zip(*seen) if a.ndim == 4)
    assert all(p.isfinite().all() for p in seen[-1])


@pytest.mark.core
def test_stock_yolo_distils_with_the_trainer_class(quick, teacher):
    StockYOLO(STUDENT).train(trainer=KDDetectionTrainer, teacher=teacher, **{**quick, "epochs": 1})
    assert results(Path(quick["project"]) / "run")[0]["train/kd_cls"] > 0
    assert not (Path(quick["project"]) / "run" / "report").exists()  # plots are off


@pytest.mark.core
def test_teachers_score_is_shown_beside_the_students(quick, teacher, caplog):
    from ultralytics.utils import LOGGER

    LOGGER.propagate = True
    model = YOLO(STUDENT)
    model.train(**{**quick, "epochs": 1}, teacher=teacher)
    LOGGER.propagate = False
    own = StockYOLO(teacher).val(data=quick["data"], imgsz=64, batch=8, plots=False, verbose=False)
    assert model.trainer.teacher_metrics["metrics/mAP50-95(B)"] == pytest.approx(own.box.map, abs=1e-6)
    text = caplog.text
    assert "3 of 3 matched by name" in text and "weight 2, loss bckd, constant" in text and "kd_feat  off" in text
    assert "teacher" in text.rpartition("Distillation:")[2] and "student" in text.rpartition("Distillation:")[2]


def test_teacher_with_other_classes_is_scored_by_the_students(quick, tmp_path):
    """Same weights with permuted classes and one more: the same score."""
    torch.manual_seed(0)
    same = save_model(tmp_path / "same.pt", TEACHER)
    ckpt = torch_load(same)
    head = ckpt["model"].model[-1]
    for tower in (*head.cv3, *head.one2one_cv3):
        conv = torch.nn.Conv2d(tower[-1].in_channels, 4, 1)
        conv.weight.data = torch.cat((tower[-1].weight.data[[2, 0, 1]], tower[-1].weight.data[:1]))
        conv.bias.data = torch.cat((tower[-1].bias.data[[2, 0, 1]], tower[-1].bias.data[:1] - 20))
        tower[-1] = conv
    head.nc, head.no, ckpt["model"].yaml["nc"] = 4, 4 + 4 * head.reg_max, 4
    ckpt["model"].names = {0: NAMES[2], 1: NAMES[0], 2: NAMES[1], 3: "unknown"}
    torch.save(ckpt, tmp_path / "other.pt")
    scores = []
    for name in ("same", "other"):
        model = YOLO(STUDENT)
        model.train(**{**quick, "epochs": 1, "name": name}, teacher=str(tmp_path / f"{name}.pt"))
        scores.append(model.trainer.teacher_metrics["metrics/mAP50-95(B)"])
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    runs = [results(Path(quick["project"]) / n)[0] for n in ("same", "other")]
    assert runs[1]["train/kd_cls"] == pytest.approx(runs[0]["train/kd_cls"], rel=1e-3)


def test_resume_continues_the_random_masks_of_mgd(quick, teacher, tmp_path):
    """Restoring the generators restores their first seed too, from which the masks of the first epoch would come."""
    masks, last = {"whole": {}, "resumed": {}}, tmp_path / "cut" / "weights" / "last.pt"
    last.parent.mkdir(parents=True)
    models = {"whole": YOLO(STUDENT)}
    models["whole"].add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    for name, given in {
        "whole": {**quick, "teacher": teacher, "kd_feat": 1.0, "kd_feat_loss": "mgd"},
        "resumed": {"resume": True, "save_dir": str(tmp_path / "cut")},
    }.items():
        model, seen = models.setdefault(name, YOLO(last) if last.exists() else None), masks[name]
        model.add_callback(
            "on_train_epoch_end", lambda t, seen=seen: seen.update({t.epoch: mask_states(t.distiller.adapters)})
        )
        model.train(**given)
    assert list(masks["resumed"]) == [1] and len(masks["whole"][1]) == 3
    for whole, resumed in zip(masks["whole"][1], masks["resumed"][1], strict=True):
        assert torch.equal(whole, resumed)
    assert not torch.equal(masks["whole"][0][0], masks["whole"][1][0])


def test_a_run_that_is_interrupted_before_its_first_batch_leaves_nothing(quick, teacher):
    def interrupt(trainer):
        raise KeyboardInterrupt

    model = YOLO(STUDENT)
    model.add_callback("on_pretrain_routine_start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.train(**quick, teacher=teacher)
    assert not Path(quick["project"]).exists()


@pytest.mark.core
def test_resume_continues_with_teacher_adapters_and_schedule(quick, teacher):
    """A run that was cut after its second epoch goes on as if nothing had happened."""
    args = {**quick, **KD, "epochs": 4, "teacher": teacher, "kd_schedule": "cosine"}
    whole = YOLO(STUDENT)
    seen: dict = {"gains": {}}
    whole.add_callback("on_train_batch_end", lambda t: seen["gains"].update({t.epoch: t.model.criterion.base.o2m}))
    copies: dict[int, Path] = {}

    def keep(trainer):
        if trainer.epoch == 1:
            copies[1] = Path(quick["project"]) / "cut" / "weights" / "last.pt"
            copies[1].parent.mkdir(parents=True)
            shutil.copy2(trainer.last, copies[1])
            shutil.copy2(trainer.csv, copies[1].parents[1] / "results.csv")
            seen["adapters"] = {k: v.clone() for k, v in trainer.distiller.adapters.state_dict().items()}

    whole.add_callback("on_model_save", keep)
    whole.train(**args)

    resumed = YOLO(copies[1])

    def look(trainer):
        state = trainer.distiller.adapters.state_dict()
        seen["restored"] = all(torch.equal(v, state[k]) for k, v in seen["adapters"].items())
        seen["epoch"] = trainer.start_epoch

    resumed.add_callback("on_pretrain_routine_end", look)
    fades, gains = [], {}
    resumed.add_callback("on_train_batch_end", lambda t: gains.update({t.epoch: t.model.criterion.base.o2m}))
    resumed.add_callback("on_train_batch_end", lambda t: fades.append((t.epoch, t.distiller.fade)))
    resumed.train(resume=True, save_dir=str(copies[1].parents[1]))
    assert seen["restored"] and seen["epoch"] == 2
    assert gains[2] < 0.8 and gains == {e: pytest.approx(g) for e, g in seen["gains"].items() if e > 1}
    assert dict(fades) == pytest.approx({2: 0.25, 3: 0.0}, abs=1e-6)
    assert resumed.trainer.args.teacher == teacher and resumed.trainer.args.kd_cls == 0.7
    rows = results(copies[1].parents[1])
    assert [r["epoch"] for r in rows] == [1, 2, 3, 4]
    assert rows[2]["train/kd_feat"] > 0 and rows[3]["train/kd_cls"] == pytest.approx(0, abs=1e-5)


@pytest.mark.core
def test_plain_run_is_saved_as_ultralytics_would_and_resumed_by_it_alone(quick, tmp_path):
    last = tmp_path / "run" / "weights" / "last.pt"
    last.parent.mkdir(parents=True)
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    model.train(**quick)
    saved = YAML.load(Path(quick["project"]) / "run" / "args.yaml")
    assert not [name for name in saved if name == "teacher" or name.startswith("kd_")]
    code = f"""
import sys
sys.modules["ultralytics_kd"] = None
from ultralytics import YOLO
YOLO(r"{last}").train(resume=True, save_dir=r"{last.parents[1]}")
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert out.returncode == 0, out.stderr[-2000:]
    assert [row["epoch"] for row in results(last.parents[1])] == [2]


def test_resume_neither_adds_nor_drops_a_teacher_and_leaves_the_run_as_it_was(quick, teacher, tmp_path):
    for name, given, resumed in (("plain", {}, {"teacher": teacher}), ("kd", {"teacher": teacher}, {"teacher": None})):
        model = YOLO(STUDENT)
        last = tmp_path / name / "weights" / "last.pt"
        last.parent.mkdir(parents=True)

        def keep(trainer, last=last):
            if trainer.epoch == 0:
                shutil.copy2(trainer.last, last)

        model.add_callback("on_model_save", keep)
        model.train(**quick, **given)
        with pytest.raises(KDError, match="is resumed the same way"):
            YOLO(last).train(resume=True, **resumed)
    folder = tmp_path / "kd"
    (folder / "args.yaml").write_text("as: it was\n")
    save_model(tmp_path / "other.pt", names={0: "cat"})
    with pytest.raises(KDError, match="no class in common"):
        YOLO(folder / "weights" / "last.pt").train(
            resume=True, teacher=str(tmp_path / "other.pt"), save_dir=str(folder)
        )
    assert (folder / "args.yaml").read_text() == "as: it was\n"


def test_resume_with_a_teacher_of_other_channels_is_one_sentence(quick, teacher, tmp_path):
    model = YOLO(STUDENT)
    last = tmp_path / "last.pt"
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    model.train(**quick, **KD, teacher=teacher)
    save_model(tmp_path / "small.pt", STUDENT)  # as wide as the student: needs no adapters
    save_model(tmp_path / "other.pt", "yolo26m.yaml")
    for name in ("small", "other"):
        with pytest.raises(KDError, match="feature adapters do not fit this teacher"):
            YOLO(last).train(resume=True, teacher=str(tmp_path / f"{name}.pt"))


@pytest.mark.core
def test_resume_takes_a_teacher_that_has_moved(quick, teacher, tmp_path):
    moved = shutil.copy2(teacher, tmp_path / "moved.pt")
    gone = shutil.copy2(teacher, tmp_path / "gone.pt")
    last = tmp_path / "last.pt"
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    model.train(**quick, **KD, teacher=str(gone))
    Path(gone).unlink()
    with pytest.raises(KDError, match=r"gone.pt was not found.*; if it is elsewhere now, resume with teacher=ITS PATH"):
        YOLO(last).train(resume=True)
    save_model(gone, TEACHER)  # another file in its place
    with pytest.raises(
        KDError, match=rf"gone.pt has other weights than when this run began: .* teacher={gone} to go on"
    ):
        YOLO(last).train(resume=True)
    torch.manual_seed(7)  # or it has the weights of the first: the training that was refused has set the seed
    save_model(gone, TEACHER, names={0: "cat", 1: "dog", 2: "hen"})
    with pytest.raises(KDError, match=r"gone.pt has other weights than when this run began"):  # not that of its classes
        YOLO(last).train(resume=True)
    with pytest.raises(KDError, match="no class in common"):
        YOLO(last).train(resume=True, teacher=str(gone))
    model = YOLO(last)
    model.train(resume=True, teacher=str(moved))
    assert model.trainer.args.teacher == str(moved) and model.trainer.start_epoch == 1


def test_resume_goes_on_with_other_weights_if_they_are_asked_for(quick, teacher, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("ultralytics.utils.LOGGER.propagate", True)
    last, other = tmp_path / "last.pt", save_model(tmp_path / "other.pt", TEACHER)
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    model.train(**quick, teacher=teacher)
    again = YOLO(last)
    again.train(resume=True, teacher=str(other))
    assert "has other weights than the run began with: they are used now" in caplog.text
    assert again.trainer.start_epoch == 1 and again.trainer.args.teacher == str(other)


@pytest.mark.core
def test_random_streams_go_on_where_the_checkpoint_was_written(quick, teacher, tmp_path):
    """The resumed epoch sees the images that it would have seen, in their order and with their augmentation."""
    last, batches = tmp_path / "run" / "weights" / "last.pt", {}
    last.parent.mkdir(parents=True)
    model = YOLO(STUDENT)

    def note(key):
        def look(trainer):
            batches.setdefault((key, trainer.epoch), []).append((trainer.seen["files"], trainer.seen["img"]))

        return look

    def listen(trainer):
        stock = trainer.preprocess_batch

        def preprocess(batch):
            trainer.seen = {"files": [Path(f).name for f in batch["im_file"]], "img": batch["img"].clone()}
            return stock(batch)

        trainer.preprocess_batch = preprocess

    for each, key in ((model, "whole"),):
        each.add_callback("on_train_start", listen)
        each.add_callback("on_train_batch_end", note(key))
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    plain = {"mosaic": 0.0, "close_mosaic": 0}  # a mosaic takes images that this process has read before
    model.train(**quick, **plain, teacher=teacher)
    again = YOLO(last)
    again.add_callback("on_train_start", listen)
    again.add_callback("on_train_batch_end", note("resumed"))
    again.train(resume=True, save_dir=str(last.parents[1]))
    whole, resumed = batches["whole", 1], batches["resumed", 1]
    assert len(whole) == len(resumed) == 2 and batches["whole", 0][0][0] != whole[0][0]
    for (files, images), (files_again, images_again) in zip(whole, resumed):
        assert files == files_again and torch.equal(images, images_again)


@pytest.mark.core
def test_run_that_was_interrupted_after_its_last_epoch_is_finished_by_resume_and_then_refused(quick, teacher):
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda t: t.epoch == 1 and (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.train(**quick, **KD, teacher=teacher)
    last = Path(quick["project"]) / "run" / "weights" / "last.pt"
    again = YOLO(last)
    again.train(resume=True)
    assert [row["epoch"] for row in results(last.parents[1])] == [1, 2]
    assert torch_load(last)["optimizer"] is None and torch_load(last.with_name("best.pt"))["optimizer"] is None
    assert "metrics/mAP50-95(B)" in again.trainer.teacher_metrics and again.metrics is not None
    for finished in (YOLO(last), StockYOLO(last)):
        install()
        with pytest.raises(KDError, match="belongs to a run that is finished: there is nothing to resume"):
            finished.train(resume=True)


def test_run_that_stopped_early_and_was_interrupted_then_is_finished_and_not_trained_further(quick, teacher):
    model = YOLO(STUDENT)
    model.add_callback("on_train_epoch_end", lambda t: setattr(t, "stop", True))  # as patience= and time= do
    model.add_callback("on_model_save", lambda t: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.train(**quick, teacher=teacher)
    last = Path(quick["project"]) / "run" / "weights" / "last.pt"
    YOLO(last).train(resume=True)
    assert [row["epoch"] for row in results(last.parents[1])] == [1]
    assert torch_load(last)["optimizer"] is None


@pytest.mark.core
def test_results_are_trimmed_to_whole_rows_of_epochs_in_the_checkpoint(quick, teacher, tmp_path):
    last = tmp_path / "run" / "weights" / "last.pt"
    last.parent.mkdir(parents=True)
    model = YOLO(STUDENT)
    model.add_callback("on_model_save", lambda t: t.epoch == 0 and shutil.copy2(t.last, last))
    model.train(**quick, teacher=teacher)
    text = (Path(quick["project"]) / "run" / "results.csv").read_text()
    (last.parents[1] / "results.csv").write_text(text + text.splitlines()[1][:20])  # epoch 2, and half a row
    YOLO(last).train(resume=True, save_dir=str(last.parents[1]))
    assert [row["epoch"] for row in results(last.parents[1])] == [1, 2]


def content(run: Path) -> dict[Path, bytes]:
    """Return the files of a run but for last.pt, which loses its optimizer when all is done."""
    files = [p for p in run.rglob("*") if p.is_file() and p.name != "last.pt"]
    return {p: p.read_bytes() for p in files}


def test_teachers_validation_leaves_the_students_files_and_callbacks_alone(quick, teacher):
    model = YOLO(STUDENT)
    files, ended = {}, []

    def after_students(trainer):
        if trainer.epoch == trainer.epochs:  # Ultralytics counts the final validation as one more epoch
            files.update(content(trainer.save_dir))

    model.add_callback("on_fit_epoch_end", after_students)
    model.add_callback("on_val_end", lambda v: ended.append(v))
    model.train(**{**quick, "epochs": 1, "save_txt": True, "save_json": True}, teacher=teacher)
    assert model.trainer.teacher_metrics and files
    folder = Path(quick["project"]) / "run"
    assert content(folder) == files
    assert set(ended) == {model.trainer.validator}


def test_failure_of_the_teachers_validation_does_not_harm_the_student(quick, teacher, monkeypatch, caplog):
    from ultralytics.utils import LOGGER

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(evaluation, "_prepare_validation", fail)
    ended = []
    model = YOLO(STUDENT)
    model.add_callback("on_train_end", ended.append)
    LOGGER.propagate = True
    metrics = model.train(**{**quick, "epochs": 1}, teacher=teacher)
    LOGGER.propagate = False
    assert ended and metrics is not None
    assert f"teacher={teacher} could not be scored: OutOfMemoryError: CUDA out of memory. Only" in caplog.text


@pytest.mark.parametrize("failing", ["prepare", "validate", ""])
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_error_in_a_validation_loses_scores_and_ends_runs_of_several_ranks(failing, world_size, caplog, monkeypatch):
    """The other ranks would wait for ever for one that fails in the middle."""

    def prepare():
        if failing == "prepare":
            raise OSError("no disk")
        return validate

    def validate():
        if failing == "validate":
            raise KDError("a sentence.")
        return {"score": 1.0}

    monkeypatch.setattr(LOGGER, "propagate", True)
    trainer = SimpleNamespace(world_size=world_size)
    expected = pytest.raises(KDError) if failing == "validate" and world_size > 1 else nullcontext()
    with expected:
        scores = scoring.validated(trainer, prepare, scoring.reason)
        assert scores == (None if failing else {"score": 1.0})
        assert ("OSError: no disk." in caplog.text) == (failing == "prepare")
        assert ("a sentence." in caplog.text) == (failing == "validate")


def test_map_of_classes_is_kept_with_the_run(quick, tmp_path, caplog):
    """Many to one, and one class from labels alone; the file is not needed again."""
    from ultralytics.utils import LOGGER

    save_model(tmp_path / "other.pt", names={0: "round", 1: "oval", 2: "beam"})
    (tmp_path / "map.yaml").write_text("round: disc\noval: disc\nbeam: bar\n")
    model = YOLO(STUDENT)
    LOGGER.propagate = True
    model.train(
        **{**quick, "epochs": 1}, teacher=str(tmp_path / "other.pt"), kd_classes=str(tmp_path / "map.yaml"), kd_tau=3
    )
    LOGGER.propagate = False
    saved = YAML.load(Path(quick["project"]) / "run" / "args.yaml")["kd_classes"]
    assert saved == {"round": "disc", "oval": "disc", "beam": "bar"}
    assert "2 of 3 matched by kd_classes; from labels alone: box" in caplog.text
    assert "The teacher knows 2 of the 3 classes." in caplog.text
    assert "'kd_tau=3.0' has no effect" in caplog.text


def test_classes_that_the_student_leaves_out_are_not_taught(quick, teacher):
    model = YOLO(STUDENT)
    model.train(**{**quick, "epochs": 1, "classes": [0, 2]}, teacher=teacher)
    assert model.trainer.teacher.classes.student == [0, 2]


def test_wider_memory_teacher_in_a_second_training_of_the_same_model(quick, teacher):
    """A model that was distilled trains on, with another teacher and without one."""
    model = YOLO(STUDENT)
    model.train(**{**quick, "epochs": 1, "name": "first"}, teacher=teacher)
    model.train(**{**quick, "epochs": 1, "name": "second"}, teacher=YOLOmodule())
    model.train(**{**quick, "epochs": 1, "name": "third"})
    project = Path(quick["project"])
    assert "train/kd_cls" in results(project / "second")[0] and "train/kd_cls" not in results(project / "third")[0]


def YOLOmodule():
    """Return a teacher as a bare module, of another family."""
    model = make_model("yolo11n.yaml")
    model.names = dict(NAMES)
    return model
