"""The tables that a distillation prints at its start and at its end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from ultralytics.cfg import TASK2METRIC
from ultralytics.utils import colorstr
from ultralytics.utils.torch_utils import get_flops, get_num_params

from ...config.arguments import class_loss
from ...config.sure_boxes import sure_confidence
from ...distillation.distillers import Distiller
from ...report.score_names import HEADS, NMS, metric_text
from ...screen import command, near, paragraph, row, table
from ...teachers import Teacher
from ...teachers.sizes import seen_smaller
from ..beginning import Beginning

NEXT = "Is it better than the student alone? A bench trains both, with several seeds."
NO_COMMAND = "Is it better than the student alone? 'yolo-kd bench' trains both, with the arguments that began this run."
AS_GOOD = "A student as good as its teacher may be held back by it: a better teacher may teach more."


def start_table(
    args: Any,
    student: nn.Module,
    teacher: Teacher,
    distiller: Distiller,
    weights: str,
    unlabeled: int = 0,
    teacher_imgsz: int | None = None,
    kept: str = "",
    alone: bool = False,
) -> str:
    """Return the start table: teacher and student, matched classes, compared levels, and active terms.

    Args:
        args (Namespace): Arguments of the training.
        student (nn.Module): The student.
        teacher (Teacher): The teacher.
        distiller (Distiller): The terms.
        weights (str): Which weights the student starts from, as `initial_weights` returns it.
        unlabeled (int): Number of images without labels.
        teacher_imgsz (int, optional): Side of the images that the teacher answers, in pixels; None for `imgsz`.
        kept (str): Which classes the student keeps, with `kd_keep`.
        alone (bool): Whether no training image has labels.
    """
    assert teacher.classes is not None
    shares = teacher.shares
    side = teacher_imgsz or args.imgsz
    matched_by = "name" if str(args.kd_classes).lower() == "auto" else "kd_classes"
    rows = [
        *(("teacher", _teacher(m, side, share, len(shares))) for m, share in zip(teacher.members, shares)),
        (
            "student",
            f"{_size(get_num_params(student), get_flops(student, args.imgsz), args.imgsz)}  {near(args.model)}",
        ),
        ("weights", weights),
        ("classes", _classes(teacher, matched_by, alone)),
        ("levels", distiller.levels),
    ]
    if kept:
        rows.insert(-1, ("keeps", kept))
    if unlabeled:
        boxes = "" if args.kd_unlabeled_boxes is None else f", {_boxes(args)}"
        ratio = "and none with labels" if alone else f"{args.kd_unlabeled_ratio:g} for each with labels"
        rows.append(("images", f"{unlabeled:,} without labels, {ratio}{boxes}"))
    for name in distiller.names:
        if name not in distiller.terms:
            rows.append((name, "off"))
            continue
        adapters = distiller.terms[name].adapters
        size = get_num_params(adapters) if adapters is not None else 0
        extra = f", adapters of {size:,} parameters that are not saved in the model" if size else ""
        loss = "loss cosine, " if name == "kd_feat" and teacher.backbones else _loss(args, name)
        rows.append((name, f"{_weight(distiller, name)}, {loss}{args.kd_schedule}{extra}"))
    return "\n".join([colorstr("Distillation:"), *(line for name, text in rows for line in row(name, text)), ""])


def initial_weights(student: nn.Module, asked: bool | str, beginning: Beginning, resumed: bool = False) -> str:
    """Return the origin of the weights that the student starts from.

    Args:
        student (nn.Module): The student.
        asked (bool | str): The `kd_init` argument.
        beginning (Beginning): Numbers of its own and of the teacher's parameters.
        resumed (bool): Whether an interrupted run goes on.
    """
    if resumed:
        return "those of the interrupted run"
    total, own, initialized = get_num_params(student), beginning.own, beginning.initialized
    if own == total:
        return "the student's own"
    reason = (
        "kd_init: the teacher is no model of the same kind, as big or bigger, or is fused" if asked else "kd_init=False"
    )
    random = "random" if initialized or 2 * own >= total else f"random ({reason})"
    if not own and not initialized:
        return random
    parts = {
        "the student's own": own,
        "from the teacher (kd_init)": initialized,
        random: total - own - initialized,
    }
    first, *others = [f"{count:,}{{}} {name}" for name, count in parts.items() if count]
    return ", ".join((first.format(f" of {total:,} parameters are"), *(other.format(" are") for other in others)))


def end_table(
    student_metrics: dict[str, float],
    teacher_metrics: dict[str, float],
    teacher: Teacher,
    sizes: tuple[int, int] = (0, 0),
    weights: str = "",
    head: str = "",
) -> str:
    """Return student and teacher side by side on the same val set.

    Args:
        student_metrics (dict[str, float]): Metrics of the best student.
        teacher_metrics (dict[str, float]): Metrics of the teacher.
        teacher (Teacher): The teacher.
        sizes (tuple[int, int]): Side of the student's and of the teacher's val images, in pixels.
        weights (str): Path of the best student.
        head (str): Name of the head that was scored, for a student with two.
    """
    main = TASK2METRIC[teacher.task]
    lines = [scores_table("Distillation:", student_metrics, teacher_metrics, teacher.task)]
    sentences = []
    if head:
        other = "; 'nms=False' in 'yolo val' scores the NMS-free one" if head == HEADS[NMS] else ""
        sentences.append(f"Scores are of the {head} head, which Ultralytics validates{other}.")
    if teacher_metrics and sizes[0] != sizes[1]:
        sentences.append(f"The teacher was scored on images of {sizes[1]} px, the student on {sizes[0]} px.")
    assert teacher.classes is not None
    # A teacher scores 0 in classes that it lacks, which makes a ratio meaningless; a backbone has no classes
    if teacher.classes.unmatched and teacher.classes.teacher_names:
        total = len(teacher.classes.learned_names)
        sentences.append(f"The teacher knows {total - len(teacher.classes.unmatched)} of the {total} classes.")
    elif teacher_metrics.get(main):
        share, metric = student_metrics[main] / teacher_metrics[main], metric_text(main, _one_part(student_metrics))
        sentences.append(f"The student keeps {share:.1%} of the teacher's {metric}.")
        if share >= 1:
            sentences.append(seen_smaller(teacher, sizes[1]) or AS_GOOD)
    lines += [line for sentence in sentences for line in paragraph(sentence)]
    return "\n".join([*lines, *row("weights", near(weights))])


def next_step(line: str) -> str:
    """Return what to do after a training, as its last lines.

    Args:
        line (str): The command; empty if none can be given.
    """
    return "\n".join(row("next", NEXT if line else NO_COMMAND) + (command(line, title="") if line else []))


def scores_table(
    title: str,
    student_metrics: dict[str, float],
    teacher_metrics: dict[str, float],
    task: str,
) -> str:
    """Return a table with the scores of teacher and student.

    Args:
        title (str): Title above the table.
        student_metrics (dict[str, float]): Metrics of the student.
        teacher_metrics (dict[str, float]): Metrics of the teacher. A dash stands for those that one of the two lacks.
        task (str): Ultralytics task, whose main metric comes first.
    """
    main = TASK2METRIC[task]
    suffix = main.partition("(")[2]  # the scores of masks before those of boxes, each in columns of their own
    others = [k for k in {**student_metrics, **teacher_metrics} if k.startswith("metrics/") and k != main]
    keys = [main, *sorted(others, key=lambda k: k.partition("(")[2] != suffix)]
    lines = [["", *(metric_text(k, _one_part(keys)) for k in keys)]]
    for name, scores in (("teacher", teacher_metrics), ("student", student_metrics)):
        lines.append([name, *(f"{scores[k]:.4f}" if k in scores else "-" for k in keys)])
    return "\n".join([colorstr(title), *table(lines)])


def _one_part(keys: Iterable[str]) -> bool:
    """Return whether all metrics are of the same part of a prediction: of boxes, masks or keypoints."""
    return len({key.partition("(")[2] for key in keys if key.startswith("metrics/")}) == 1


def _size(parameters: int, gflops: float, imgsz: int) -> str:
    """Return parameters, and GFLOPs at an image size, in columns, or a note that they are unknown."""
    if not parameters:
        return "of unknown size:"
    operations = f"{gflops:.1f}" if gflops >= 1 else f"{gflops:.2g}"
    return f"{parameters:>11,} parameters {operations:>6} GFLOPs at {imgsz} px"


def _teacher(teacher: Teacher, imgsz: int, share: float, count: int) -> str:
    """Return size and source of a teacher, and its weight beside others."""
    size = _size(teacher.parameters(), teacher.gflops(imgsz), imgsz)
    return f"{size}  {near(teacher.source)}" + (f" (weight {share:.0%})" if count > 1 else "")


def _weight(distiller: Distiller, name: str) -> str:
    """Return the weight of a term, or the share of the labels' gradient that it is scaled to."""
    if distiller.balance is None:
        return f"weight {distiller.weights[name]:g}"
    return f"at {distiller.balance.shares[name]:g} of the labels' gradient"


def _boxes(args: Any) -> str:
    """Return which boxes are labels of images without labels."""
    return f"boxes of confidence {sure_confidence(args.kd_unlabeled_boxes):g} or more are their labels"


def _loss(args: Any, name: str) -> str:
    """Return the loss of a term, if there is a choice."""
    if name == "kd_cls":
        return f"loss {class_loss(args, args.task)}, "
    loss = getattr(args, f"{name}_loss", None)
    return f"loss {loss}, " if loss else ""


def _classes(teacher: Teacher, matched_by: str, alone: bool = False) -> str:
    """Return how many classes are matched, and which classes are not.

    Args:
        teacher (Teacher): The teacher, its classes matched.
        matched_by (str): What they are matched by.
        alone (bool): Whether no training image has labels.
    """
    assert teacher.classes is not None
    if not teacher.classes.teacher_names:
        return "from labels alone: this teacher has features and no classes"
    total, unmatched = len(teacher.classes.learned_names), teacher.classes.unmatched
    text = f"{total - len(unmatched)} of {total} matched by {matched_by}"
    plurals = [pair for m in teacher.members if m.classes for pair in m.classes.plurals]
    if plurals:
        text += f", of them as plural and singular: {', '.join(f'{a} = {b}' for a, b in dict.fromkeys(plurals))}"
    if not unmatched:
        return text
    who = "taught by nobody" if alone else "from labels alone"
    return f"{text}; {who}: {', '.join(unmatched[:8])}{' ...' if len(unmatched) > 8 else ''}"
