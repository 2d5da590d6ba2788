"""What a training leaves behind in the process: nothing of the teacher, no hooks, no files, no memory."""

from __future__ import annotations

import gc
import os
import statistics
import weakref
from pathlib import Path

import psutil
import pytest
import torch
from conftest import NAMES, STUDENT, TEACHER, make_model, save_model
from test_training import KD, results

from ultralytics_kd import YOLO, KDError
from ultralytics_kd.distillation.distillers import Distiller
from ultralytics_kd.teachers import GridTeacher

EPOCHS = int(os.environ.get("ULTRALYTICS_KD_TEST_EPOCHS", 6))


def hooks(model: torch.nn.Module) -> int:
    """Return how many hooks hang on a model's modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


@pytest.mark.parametrize("loss", ["pkd", pytest.param("crosskd", marks=pytest.mark.nightly)])
def test_teacher_is_gone_after_training_and_the_model_is_trained_again_with_another_and_with_none(
    quick, teacher, tmp_path, loss
):
    seen: list[weakref.ref] = []

    def look(trainer):
        own = trainer.teacher
        modules = [own.original, own.model, *([own.head] if own.head is not None else [])]
        seen.extend(weakref.ref(x) for x in (*modules, *own.original.parameters(), *own.model.parameters()))

    model = YOLO(STUDENT)
    model.add_callback("on_train_start", look)
    # Fixtures of other files in this process may hold some
    others = {id(o) for o in gc.get_objects() if isinstance(o, (GridTeacher, Distiller))}
    args = {**quick, "epochs": 1, "exist_ok": True}
    model.train(**args, kd_feat=1.0, kd_feat_loss=loss, teacher=teacher)
    gc.collect()
    assert len(seen) > 100 and not [ref() for ref in seen if ref() is not None]
    assert not hooks(model.model) and not hooks(model.trainer.model) and not hooks(model.trainer.ema.ema)
    assert model.trainer.teacher.source == teacher and model.trainer.teacher.parameters() == 120_626

    seen.clear()
    other = save_model(tmp_path / "other.pt", "yolov8n.yaml")
    model.train(**args, teacher=str(other))
    gc.collect()
    assert seen and not [ref() for ref in seen if ref() is not None]
    assert results(Path(quick["project"]) / "run")[0]["train/kd_cls"] > 0

    model.clear_callback("on_train_start")
    model.train(**args)
    assert model.trainer.teacher is None and "train/kd_cls" not in results(Path(quick["project"]) / "run")[0]
    gc.collect()
    kept = [o for o in gc.get_objects() if isinstance(o, (GridTeacher, Distiller))]
    kept = [o for o in kept if id(o) not in others]
    assert not kept, "a training without a teacher still has the last one's"


def test_teacher_in_memory_is_the_users_alone_afterwards_and_a_failed_run_keeps_none(quick):
    mine, seen = make_model(TEACHER), []
    mine.names = dict(NAMES)
    model = YOLO(STUDENT)

    def fail(trainer):
        seen.extend(weakref.ref(x) for x in (trainer.teacher.original, trainer.teacher.model))
        raise KDError("enough")

    model.add_callback("on_train_batch_end", fail)
    with pytest.raises(KDError, match="enough"):
        model.train(**quick, teacher=mine)
    gc.collect()
    assert len(seen) == 2 and not [ref() for ref in seen if ref() is not None]
    gone = weakref.ref(mine)
    del mine
    gc.collect()
    assert gone() is None


def test_memory_and_open_files_stay_flat_over_epochs(quick, teacher):
    """With `ULTRALYTICS_KD_TEST_EPOCHS=200` it sees leaks of a few kB a step."""
    process, memory, files = psutil.Process(), [], []
    model = YOLO(STUDENT)

    def measure(trainer):
        gc.collect()
        memory.append(process.memory_info().rss / 2**20)
        files.append(process.num_fds())

    model.add_callback("on_fit_epoch_end", measure)
    model.train(**{**quick, "epochs": EPOCHS, "val": False, "patience": 0}, **KD, teacher=teacher)
    half, third = memory[len(memory) // 3 : 2 * len(memory) // 3], memory[2 * len(memory) // 3 :]
    print(
        f"RSS {memory[0]:.0f} MiB, middle third {statistics.median(half):.1f}, last {statistics.median(third):.1f}; "
        f"open files {files[0]} to {files[-1]}"
    )
    assert max(files[1:]) <= files[1]
    assert statistics.median(third) - statistics.median(half) < 8
