"""Faults while a student trains: NaN and Inf, full disks, lost files. Nothing is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import STUDENT, draw_dataset
from test_training import KD, results
from ultralytics.engine import trainer as engine
from ultralytics.utils.patches import torch_load

from ultralytics_kd import YOLO, KDError, files
from ultralytics_kd.distillation.loss import FINITE_FACTOR, FirstNonFinite
from ultralytics_kd.distillation.terms.feature import FeatureTerm
from ultralytics_kd.teachers import GridTeacher
from ultralytics_kd.training.run.resuming import ResumedRun

pytestmark = pytest.mark.core  # of .ci/releases


def broken(value: float):
    """Return a stand-in for a model's answer that is `value` all over."""

    def run(self, images):
        out = GridTeacher._stock_run(self, images)
        for branch in out.values():
            branch.scores.fill_(value)
        return out

    return run


# Numbers --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_teacher_whose_answers_become_no_numbers_stops_the_run_with_its_last_checkpoint_whole(
    quick, teacher, monkeypatch, value
):
    model = YOLO(STUDENT)
    monkeypatch.setattr(GridTeacher, "_stock_run", GridTeacher._run, raising=False)

    def breaks(trainer):
        if trainer.epoch == 1:
            monkeypatch.setattr(GridTeacher, "_run", broken(value))

    model.add_callback("on_train_epoch_start", breaks)
    with pytest.raises(KDError, match="returned NaN or Inf in float32: its weights are broken, give others"):
        model.train(**quick, teacher=teacher)
    last = Path(quick["project"]) / "run" / "weights" / "last.pt"
    assert torch_load(last)["epoch"] == 0
    monkeypatch.setattr(GridTeacher, "_run", GridTeacher._stock_run)
    again = YOLO(last)
    again.train(resume=True)
    assert [row["epoch"] for row in results(last.parents[1])] == [1, 2]


def test_nonfinite_answer_whose_check_is_pending_is_zeroed_and_gets_the_factor_0(teacher):
    """As on a GPU, where the host does not wait: here the check is replaced by one that stays pending."""
    from ultralytics_kd.teachers import open_teacher

    opened = open_teacher(teacher)
    opened.match(opened.names)
    opened.prepare(torch.device("cpu"), dtype=torch.bfloat16, fall_back=True)
    images = torch.rand(1, 3, 64, 64)
    opened(images)
    assert opened.finite_factor is None  # the first was checked

    class Pending:
        pending = None

        def __call__(self, tensors):
            self.pending = torch.stack([x.float().sum() for x in tensors]).isfinite().all()
            return True

    opened._check = Pending()
    assert opened(images).branches["one2many"].scores.isfinite().all() and opened.finite_factor == 1
    stock = opened._run
    opened._run = lambda images: _poisoned(stock(images))
    answer = opened(images)
    assert opened.finite_factor == 0
    assert all(b.scores.isfinite().all() and b.boxes.isfinite().all() for b in answer.branches.values())


def _poisoned(out):
    for branch in out.values():
        branch.scores[:, ::7] = float("inf")
        branch.boxes[:, ::5] = float("nan")
    return out


def test_terms_of_an_answer_that_is_not_finite_are_zero_and_have_no_gradient(quick, teacher):
    """The labels' gradient of that batch is what it would be without a teacher."""
    model, seen = YOLO(STUDENT), {}

    def look(trainer):
        student, batch = trainer.model, trainer.preprocess_batch(next(iter(trainer.train_loader)))
        for name, factor in (("off", torch.tensor(0.0)), ("on", torch.tensor(1.0))):
            student.zero_grad()
            loss, items = student({**batch, FINITE_FACTOR: factor})
            loss.sum().backward()
            seen[name] = items, [p.grad.clone() for p in student.parameters() if p.grad is not None]
        student.zero_grad()
        loss, items = student.criterion.base(student(batch["img"]), batch)
        loss.sum().backward()
        seen["labels"] = items, [p.grad.clone() for p in student.parameters() if p.grad is not None]
        raise KeyboardInterrupt

    model.add_callback("on_train_start", look)
    with pytest.raises(KeyboardInterrupt):
        model.train(**quick, teacher=teacher)
    assert seen["off"][0]["kd_cls"] == 0 < seen["on"][0]["kd_cls"]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(seen["off"][1], seen["labels"][1]))
    assert not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(seen["on"][1], seen["labels"][1]))


def poison(monkeypatch, when):
    """Make the feature term NaN while `when()` is true."""
    stock = FeatureTerm.__call__

    def term(self, pair):
        value = stock(self, pair)
        return value * float("nan") if when() else value

    monkeypatch.setattr(FeatureTerm, "__call__", term)


def test_term_that_is_no_number_in_the_first_epoch_is_named_and_ends_the_run(quick, teacher, monkeypatch):
    poison(monkeypatch, lambda: True)
    with pytest.raises(KDError, match=r"kd_feat became NaN or Inf in epoch 1.*lower its weight or set it to 0"):
        YOLO(STUDENT).train(**quick, **KD, teacher=teacher)


def test_after_a_number_that_is_none_the_run_goes_on_from_its_checkpoint_with_adapters_and_gains(
    quick, teacher, monkeypatch, caplog
):
    """Epoch 2 fails once and is repeated: adapters are those of the checkpoint, and the gains do not skip an epoch."""
    model, seen = YOLO(STUDENT), {"gains": {}, "adapters": [], "failed": False}
    monkeypatch.setattr(engine.LOGGER, "propagate", True)

    def start(trainer):
        seen["gains"].setdefault(trainer.epoch, []).append(trainer.model.criterion and trainer.model.criterion.base.o2m)
        seen["adapters"].append([p.detach().clone() for p in trainer.distiller.adapters.parameters()])
        seen["epoch"] = trainer.epoch

    def ends(trainer):
        seen["failed"] |= trainer.epoch == 1

    poison(monkeypatch, lambda: seen["epoch"] == 1 and not seen["failed"])
    model.add_callback("on_train_epoch_start", start)
    model.add_callback("on_train_epoch_end", ends)
    model.train(**{**quick, "epochs": 3}, **KD, teacher=teacher)
    assert "kd_feat became NaN or Inf in epoch 2" in caplog.text and "recovering from last.pt" in caplog.text
    assert len(seen["gains"][1]) == 2 and seen["gains"][1][0] == seen["gains"][1][1] > seen["gains"][2][0]
    _, before, repeated, _ = seen["adapters"]
    assert all(torch.equal(a, b) for a, b in zip(before, repeated))
    rows = results(Path(quick["project"]) / "run")
    assert [row["epoch"] for row in rows] == [1, 2, 3] and all(row["train/kd_feat"] > 0 for row in rows)
    assert all(v.isfinite().all() for v in torch_load(model.trainer.last)["model"].state_dict().values())


def test_number_that_is_none_in_every_attempt_ends_the_run_with_a_sentence(quick, teacher, monkeypatch):
    model, seen = YOLO(STUDENT), {}
    model.add_callback("on_train_epoch_start", lambda t: seen.update(epoch=t.epoch))
    poison(monkeypatch, lambda: seen["epoch"] == 1)
    with pytest.raises(
        KDError, match=r"NaN persisted for 4 epochs: kd_feat became NaN or Inf in epoch 2; lower its weight"
    ):
        model.train(**quick, **KD, teacher=teacher)
    assert torch_load(Path(quick["project"]) / "run" / "weights" / "last.pt")["epoch"] == 0


def test_the_first_part_that_is_no_number_is_remembered_until_it_is_forgotten():
    first, nan = FirstNonFinite(), torch.tensor(float("nan"))
    one = torch.tensor(1.0)
    first.update({"box_loss": one, "kd_cls": one})
    assert first.names() == []
    first.update({"box_loss": one, "kd_cls": nan})
    first.update({"box_loss": nan, "kd_cls": nan})
    assert first.names() == ["kd_cls"]
    first.reset()
    first.update({"box_loss": nan, "kd_cls": one})
    assert first.names() == ["box_loss"]


@pytest.mark.parametrize("kind", ["no objects", "one image", "absent class"])
def test_thin_data_train_to_the_end_with_numbers(quick, teacher, tmp_path, kind):
    data = draw_dataset(tmp_path / "thin", images=4)
    for file in (tmp_path / "thin" / "labels").rglob("*.txt"):
        lines = [line for line in file.read_text().splitlines() if line.startswith("0")]
        file.write_text("" if kind == "no objects" else "\n".join(lines))
    args = {**quick, "data": str(data), "batch": 1 if kind == "one image" else 2, "epochs": 1}
    YOLO(STUDENT).train(**args, **KD, teacher=teacher)
    (row,) = results(Path(quick["project"]) / "run")
    assert all(value == value and abs(value) != float("inf") for value in row.values())
    assert row["train/kd_cls"] > 0 and row["train/kd_feat"] > 0


def test_out_of_memory_in_the_first_epoch_halves_the_batch_of_teacher_and_student(quick, teacher, monkeypatch):
    stock, sizes = GridTeacher._run, []

    def run(self, images):
        sizes.append(len(images))
        if len(sizes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return stock(self, images)

    monkeypatch.setattr(GridTeacher, "_run", run)
    model = YOLO(STUDENT)
    model.train(**{**quick, "epochs": 1}, **KD, teacher=teacher)
    assert sizes[:4] == [4, 4, 2, 2] and model.trainer.args.batch == 2
    (row,) = results(Path(quick["project"]) / "run")
    assert row["train/kd_cls"] > 0 and row["train/kd_feat"] > 0


# Disks ----------------------------------------------------------------------------------------------------------------
CODE = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import QUICK, STUDENT
from ultralytics_kd import YOLO
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def fills(trainer):  # no file can grow beyond 100 kB from the second epoch on: a checkpoint has more
    if trainer.epoch == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

model = YOLO(STUDENT)
model.add_callback("on_train_epoch_start", fills)
try:
    model.train(**QUICK, data=sys.argv[2], teacher=sys.argv[3], project=sys.argv[4], name="run")
except ValueError as e:
    print("SAID", e)
"""


@pytest.mark.nightly
def test_disk_that_fills_up_while_a_checkpoint_is_written_costs_one_epoch(quick, data, teacher, tmp_path):
    """Ultralytics alone leaves half a last.pt, and with it nothing to resume."""
    code = [sys.executable, "-c", CODE, str(Path(__file__).parent), data, teacher, quick["project"]]
    out = subprocess.run(code, capture_output=True, text=True, check=False)
    weights = Path(quick["project"]) / "run" / "weights"
    assert f"SAID no space is left in {weights.parent}: {weights / 'last.pt'} is whole" in out.stdout, out.stderr[
        -2000:
    ]
    assert torch_load(weights / "last.pt")["epoch"] == 0 and torch_load(weights / "best.pt")["epoch"] == 0
    assert sorted(p.name for p in weights.iterdir()) == ["best.pt", "last.pt"]
    YOLO(weights / "last.pt").train(resume=True)
    assert [row["epoch"] for row in results(weights.parent)] == [1, 2]


def test_a_disk_that_is_full_while_results_are_trimmed_says_how_to_resume(tmp_path, monkeypatch):
    (tmp_path / "results.csv").write_text("epoch,time\n1,2\n2,3\n3,")
    (tmp_path / "last.pt").touch()
    run = SimpleNamespace(csv=tmp_path / "results.csv", last=tmp_path / "last.pt", start_epoch=1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KDError, match=rf"^no space is left in .*go on with resume model={tmp_path / 'last.pt'}"):
        ResumedRun.trim_results(run)
    assert (tmp_path / "results.csv").read_text() == "epoch,time\n1,2\n2,3\n3,"
    monkeypatch.undo()
    ResumedRun.trim_results(run)
    assert (tmp_path / "results.csv").read_text() == "epoch,time\n1,2\n"


def test_folder_that_cannot_be_written_is_one_sentence(quick, teacher):
    with pytest.raises(KDError, match=r"cannot be written to \(.*\): give another project=FOLDER"):
        YOLO(STUDENT).train(**{**quick, "project": "/sys/kernel/runs"}, teacher=teacher)


def test_only_faults_of_the_disk_are_spoken_of_as_such(tmp_path):
    faults = ((errno.ENOSPC, "no space is left"), (errno.EROFS, "cannot be written to"), (errno.ESTALE, "Stale file"))
    for number, said in faults:
        assert said in str(files.disk_fault(OSError(number, "x"), tmp_path, "make room."))
    assert files.disk_fault(OSError(errno.ENOENT, "x"), tmp_path, "make room.") is None


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "file"
    files.write_whole(target, b"before")
    with pytest.raises(ZeroDivisionError), files.replacing(target) as part:
        part.write_bytes(b"half")
        raise ZeroDivisionError
    assert target.read_bytes() == b"before" and list(tmp_path.iterdir()) == [target]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask


# Images ---------------------------------------------------------------------------------------------------------------
def test_unreadable_image_is_left_out_and_a_deleted_one_ends_the_run_with_its_checkpoint(quick, teacher, tmp_path):
    data = draw_dataset(tmp_path / "d")
    images = sorted((tmp_path / "d" / "images" / "train").iterdir())
    images[0].write_bytes(b"no image")
    model = YOLO(STUDENT)

    def delete(trainer):
        if trainer.epoch == 1:
            dataset = trainer.train_loader.dataset
            assert str(images[0]) not in dataset.im_files
            dataset.ims = [None] * len(dataset.ims)  # of so few it keeps all in memory
            images[1].unlink()

    model.add_callback("on_train_epoch_start", delete)
    with pytest.raises(FileNotFoundError, match=images[1].name):
        model.train(**{**quick, "data": str(data), "cache": False}, teacher=teacher)
    last = Path(quick["project"]) / "run" / "weights" / "last.pt"
    again = YOLO(last)
    again.train(resume=True)  # the deleted one is no longer in the data set
    assert [row["epoch"] for row in results(last.parents[1])] == [1, 2]
