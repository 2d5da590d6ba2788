"""The lean teacher: it computes what is read and nothing else, in the precision that was asked for."""

import os
import warnings
from copy import deepcopy

import pytest
import torch
from conftest import make_model, save_model
from task_models import task_model
from torch.utils._python_dispatch import TorchDispatchMode
from ultralytics.cfg import get_cfg
from ultralytics.nn.modules import Conv
from ultralytics.utils import autobatch

from ultralytics_kd import YOLO, KDError
from ultralytics_kd.distillation.distillers import GridDistiller
from ultralytics_kd.errors import KDTypeError
from ultralytics_kd.teachers import inference, open_teacher
from ultralytics_kd.teachers.class_map import match_classes
from ultralytics_kd.teachers.finite import FiniteCheck
from ultralytics_kd.training.autobatch import StudentWithTeacher

NAMES = {0: "a", 1: "b", 2: "c"}
CPU = torch.device("cpu")
OFF = {"kd_cls": 0.0, "kd_box": 0.0, "kd_feat": 0.0}
EVERY = {"one2many": {"scores", "boxes"}, "one2one": {"scores", "boxes"}}


def pair(student_cfg="yolo26n.yaml", teacher_cfg="yolo26s.yaml", dtype=torch.float32, **args):
    """Return student, prepared teacher and distiller."""
    torch.manual_seed(0)
    student = make_model(student_cfg).train()
    student.args = get_cfg(overrides={"teacher": "t.pt", **OFF, **args})
    teacher = open_teacher(make_model(teacher_cfg))
    teacher.classes = match_classes(NAMES, NAMES)
    teacher.inspect()
    distiller = GridDistiller(student.args, student, teacher)
    teacher.prepare(CPU, distiller.reads, dtype)
    return student, teacher, distiller


@pytest.mark.core
@pytest.mark.parametrize(
    "args, student_cfg, expected",
    [
        ({"kd_feat": 1.0}, "yolo26n.yaml", {"one2many": set()}),
        ({"kd_feat": 1.0, "kd_feat_loss": "sl2"}, "yolo26n.yaml", {"one2many": {"scores"}}),
        ({"kd_cls": 1.0}, "yolo26n.yaml", {"one2many": {"scores"}, "one2one": {"scores"}}),
        ({"kd_cls": 1.0}, "yolo11n.yaml", {"one2many": {"scores"}}),
        ({"kd_box": 1.0}, "yolo26n.yaml", EVERY),
    ],
)
def test_only_the_branches_and_towers_that_a_term_reads_are_computed(args, student_cfg, expected):
    _, teacher, distiller = pair(student_cfg, **args)
    assert distiller.reads.parts == expected
    towers = teacher.model.model[-1].towers
    assert {b: set(parts) for b, parts in towers.items()} == expected
    answer = teacher(torch.rand(2, 3, 64, 64))
    for name, branch in answer.branches.items():
        assert bool(branch.scores.numel()) == ("scores" in expected[name])
        assert bool(branch.boxes.numel()) == ("boxes" in expected[name])
        assert [f.shape[1] for f in branch.feats] == list(teacher.layout.channels)


def test_fused_convolutions_return_the_outputs_of_the_original():
    original = make_model("yolo26s.yaml").eval()
    fused, _ = inference.raw_output_copy(original, EVERY, CPU)
    assert any("forward" in vars(m) for m in fused.modules() if isinstance(m, Conv))
    with torch.no_grad():
        images = torch.rand(2, 3, 96, 96)
        expected, outputs = original(images)[1], fused(images)
    for branch in EVERY:
        for part in ("scores", "boxes"):
            difference = (outputs[branch][part] - expected[branch][part]).norm() / expected[branch][part].norm()
            assert difference < 1e-3 and expected[branch][part].std() > 0.01  # something was compared


@pytest.mark.parametrize("fault", [AttributeError, RuntimeError, "other values"])
def test_a_torch_without_the_fused_operator_runs_the_plain_one(monkeypatch, fault):
    def operator(module, x):
        if fault == "other values":
            return torch.full((1, module.conv.out_channels, 4, 4), 9.0)
        raise fault("no such operator")

    monkeypatch.setattr(inference, "_fused_conv", operator)
    model = make_model("yolo26n.yaml").eval()
    assert not inference.fuse_activations(model.fuse(verbose=False))
    assert model(torch.rand(1, 3, 64, 64))[0].isfinite().all()


def test_half_precision_answers_are_near_and_crosskd_still_works():
    args = {"kd_cls": 1.0, "kd_box": 1.0, "kd_feat": 1.0, "kd_feat_loss": "crosskd"}
    values = {}
    for dtype in (torch.float32, torch.bfloat16):
        student, teacher, distiller = pair(dtype=dtype, **args)
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        answer = teacher(images)
        assert answer.branches["one2many"].scores.dtype == dtype
        assert next(teacher.model.parameters()).dtype == dtype
        assert next(teacher.head.parameters()).dtype == torch.float32
        distiller.gains = {"one2many": 1.0, "one2one": 1.0}
        values[dtype] = torch.stack(list(distiller(student(images), answer, student.model[-1]).values()))
        values[dtype].sum().backward()
    torch.testing.assert_close(values[torch.bfloat16], values[torch.float32], rtol=0.1, atol=0.02)


def overflowing():
    """Return a teacher whose scores float16 cannot hold."""
    model = make_model("yolo26s.yaml")
    with torch.no_grad():
        for tower in model.model[-1].cv3:
            tower[-1].bias.fill_(1e6)
    return model


def test_a_teacher_that_overflows_falls_back_to_float32_when_the_precision_was_ours_to_choose(caplog):
    teacher = open_teacher(overflowing())
    teacher.classes = match_classes(NAMES, NAMES)
    teacher.prepare(CPU, None, torch.float16, fall_back=True)
    answer = teacher(torch.rand(1, 3, 64, 64))
    assert teacher.dtype == torch.float32 and answer.branches["one2many"].scores.isfinite().all()
    teacher.prepare(CPU, None, torch.float16)
    with pytest.raises(KDError, match="returned NaN or Inf in float16: use kd_precision=fp32"):
        teacher(torch.rand(1, 3, 64, 64))


def test_a_teacher_with_broken_weights_is_named():
    model = make_model("yolo26s.yaml")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    teacher = open_teacher(model)
    teacher.classes = match_classes(NAMES, NAMES)
    teacher.prepare(CPU)
    with pytest.raises(KDError, match="returned NaN or Inf in float32: its weights are broken, give others"):
        teacher(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("family", ["yolo26n", "yolo11n"])
def test_mask_prototypes_that_are_broken_or_overflow_are_noticed(family):
    for value in (float("nan"), 1e6):
        model = task_model("segment", family)
        with torch.no_grad():
            model.model[-1].proto.cv3.bn.weight.fill_(value)
        teacher = open_teacher(model, "segment")
        teacher.match(teacher.names)
        student = task_model("segment", "yolo26n", seed=1)
        reads = GridDistiller(get_cfg(overrides={"teacher": "t.pt", "task": "segment"}), student, teacher).reads
        teacher.prepare(CPU, reads, torch.float16, fall_back=True)
        if value == 1e6:
            answer = teacher(torch.rand(1, 3, 64, 64))
            assert teacher.dtype == torch.float32 and answer.branches["one2many"].proto.isfinite().all()
        else:
            with pytest.raises(KDError, match="returned NaN or Inf in float32"):
                teacher(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize(
    "value, error, said",
    [
        ({"kd_precision": "fp8"}, KDError, "valid ones are auto, fp32, fp16, bf16"),
        ({"kd_compile": 3}, KDTypeError, "must be True, False or a mode"),
        ({"kd_compile": "fastest"}, KDError, "valid ones are default, reduce-overhead"),
    ],
)
def test_precision_and_compile_are_checked(value, error, said):
    with pytest.raises(error, match=said):
        get_cfg(overrides={"teacher": "t.pt", **value})


@pytest.mark.parametrize(
    "args, expected",
    [
        ({}, torch.float32),
        ({"kd_precision": "bf16"}, torch.bfloat16),
    ],
)
def test_the_teacher_trains_in_the_precision_that_was_asked_for(quick, teacher, args, expected):
    model = YOLO("yolo26n.yaml")
    model.train(**{**quick, "epochs": 1, "teacher": teacher, "kd_feat": 1.0, **args})
    assert model.trainer.teacher.dtype == expected
    assert all(v > 0 for k, v in model.trainer.metrics.items() if k.startswith("val/kd"))


class Waits(TorchDispatchMode):
    """Notes operations that make the host wait for a device, or copy to one."""

    names = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "item", "lift_fresh")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(n in str(func) for n in self.names):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Event:
    """A mark in a stream of CUDA's that is reached."""

    def synchronize(self) -> None:
        """Wait for nothing."""


def test_delayed_check_returns_the_result_of_the_batch_before(monkeypatch):
    check = FiniteCheck(delayed=True)
    monkeypatch.setattr(check, "_copy_to_host", lambda flag: (flag, Event()))
    good, bad = torch.ones(3), torch.tensor([1.0, torch.inf])
    assert [check([x, good]) for x in (good, bad, good, good)] == [True, True, False, True]
    assert not FiniteCheck(delayed=True)([bad])  # the first is checked at once
    assert [FiniteCheck()([x]) for x in (good, bad, torch.zeros(0), torch.tensor([torch.nan]))] == [
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("names", [NAMES, {0: "C", 1: "other"}])
def test_neither_teacher_nor_terms_make_the_host_wait(names, monkeypatch):
    student, teacher, distiller = pair(kd_cls=1.0, kd_box=1.0, kd_feat=1.0)
    teacher.names = names
    teacher.classes = match_classes(NAMES, names, "auto")
    images = torch.rand(2, 3, 64, 64)
    distiller.gains = {"one2many": 1.0, "one2one": 1.0}
    distiller(student(images), teacher(images), student.model[-1])  # the first answer is checked at once
    teacher._check = check = FiniteCheck(delayed=True)  # as on CUDA, where the flag of the batch before is on the host
    monkeypatch.setattr(check, "_copy_to_host", lambda flag: (True, Event()))
    for _ in range(2):
        teacher(images)
    preds = student(images)
    with Waits() as waits:
        distiller(preds, teacher(images), student.model[-1])
    assert not waits.seen
    with Waits() as waits:  # the sieve itself works
        float(images.sum())
    assert waits.seen


# AutoBatch ------------------------------------------------------------------------------------------------------------
class Memory(TorchDispatchMode):
    """Follows the bytes of tensors that are alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.now = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        import weakref

        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                key = storage._cdata
                if key not in self.alive:
                    self.alive[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, key)
        return out

    def _free(self, key):
        self.now -= self.alive.pop(key, 0)


@pytest.mark.core
def test_autobatch_profiles_teacher_terms_and_adapters(quick, tmp_path, monkeypatch):
    """What Ultralytics profiles takes the memory of a whole step, and leaves nothing behind in the adapters."""
    seen, teacher = {}, str(save_model(tmp_path / "teacher.pt", "yolo26s.yaml"))

    def measure(model, imgsz, amp, batch, max_num_obj, dataset_size):
        copy = deepcopy(model).train()
        assert isinstance(copy, StudentWithTeacher) and copy.stride.tolist() == [8, 16, 32] and len(copy.names) == 3
        images = torch.rand(2, 3, imgsz, imgsz, requires_grad=True)
        for name, subject in (("student", copy.student), ("both", copy)):
            with Memory() as memory:
                out = subject(images)
                sum(x.sum() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)).backward()
            seen[name] = memory.peak
        seen["trained"] = [p.grad is not None for p in copy.distiller.adapters.parameters()]
        return 4

    monkeypatch.setattr("ultralytics.engine.trainer.check_train_batch_size", measure)
    model = YOLO("yolo26n.yaml")
    gradients = []
    model.add_callback("on_train_start", lambda t: gradients.extend(p.grad for p in t.distiller.adapters.parameters()))
    model.train(**{**quick, "batch": -1, "epochs": 1, "teacher": teacher, "kd_feat": 1.0, "kd_feat_loss": "mgd"})
    assert model.trainer.batch_size == 4
    assert any(seen["trained"]) and gradients and all(g is None for g in gradients)
    assert seen["both"] > 1.2 * seen["student"], seen


@pytest.mark.core
def test_student_with_teacher_can_be_profiled_by_ultralytics(teacher):
    """With its own profiler, which adds what the loss takes from `stride` and `names`."""
    student, answerer, distiller = pair(kd_cls=1.0, kd_feat=1.0)
    assert (
        autobatch.check_train_batch_size(StudentWithTeacher(student, answerer, distiller), 64, False) == 16
    )  # a CPU's default
    from ultralytics.utils.torch_utils import profile_ops

    results = profile_ops(
        [torch.rand(2, 3, 64, 64)], StudentWithTeacher(student, answerer, distiller).train(), n=1, device=CPU
    )
    assert len(results) == 1 and results[0][3] > 0 and results[0][4] > 0


def test_uninitialised_memory_that_ultralytics_profiles_does_not_reach_the_teacher():
    student, answerer, distiller = pair(kd_cls=1.0)
    profiled = StudentWithTeacher(student, answerer, distiller).train()
    with pytest.raises(KDError, match="NaN or Inf"):
        answerer(torch.full((2, 3, 64, 64), 1e38))
    assert profiled(torch.full((2, 3, 64, 64), 1e38)) and answerer.dtype == torch.float32


# Compilation ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def quick_compiler(monkeypatch):
    """Capture graphs as ever, and run them without inductor, whose code takes minutes to build on one core."""
    if os.environ.get("ULTRALYTICS_KD_TEST_INDUCTOR"):
        return
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m, mode=None, backend=None: compile(m, backend="aot_eager"))


@pytest.mark.nightly
def test_a_compiled_student_with_a_compiled_teacher_trains_to_the_end_with_the_losses_of_eager(
    quick, teacher, quick_compiler
):
    values = {}
    for name, args in (("eager", {}), ("compiled", {"compile": True, "kd_compile": True})):
        model, items, kinds = YOLO("yolo26n.yaml"), [], set()
        model.add_callback("on_train_end", lambda t, kinds=kinds: kinds.add(type(t.teacher.model).__name__))
        model.add_callback("on_train_batch_end", lambda t, items=items: items.append(dict(t.loss_items)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.train(
                **{**quick, "epochs": 1, "teacher": teacher, "kd_feat": 1.0, "name": name, "optimizer": "SGD", **args}
            )
        values[name] = items
        if name == "compiled":
            assert kinds == {"OptimizedModule"}
            assert type(model.trainer.model).__name__ == "OptimizedModule"
            assert type(YOLO(model.trainer.last).model).__name__ == "DetectionModel"
    assert len(values["eager"]) == len(values["compiled"]) == 2
    for eager, compiled in zip(values["eager"], values["compiled"]):
        assert eager.keys() == compiled.keys()
        for key in eager:
            torch.testing.assert_close(compiled[key], eager[key], rtol=1e-2, atol=1e-3)
            if key.startswith("kd"):
                assert eager[key] > 0


def test_a_teacher_that_cannot_be_compiled_is_one_sentence(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("QAT models do not support torch.compile. Use compile=False.")

    monkeypatch.setattr(inference, "attempt_compile", refuse)
    with pytest.raises(KDError, match=r"the teacher cannot be compiled: QAT models do not support .* Drop kd_compile"):
        inference.to_device(make_model("yolo26n.yaml"), CPU, torch.float32, True)
