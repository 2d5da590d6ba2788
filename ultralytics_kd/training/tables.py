"""The tables that a distillation prints at start and at end."""

from __future__ import annotations

from typing import Any

from torch import nn
from ultralytics.cfg import TASK2METRIC
from ultralytics.utils import colorstr
from ultralytics.utils.torch_utils import get_flops, get_num_params

from ..config.arguments import class_loss
from ..distillation.distillers import Distiller
from ..teachers import Teacher


def start_table(
    args: Any, student: nn.Module, teacher: Teacher, distiller: Distiller, beginning: str, unlabeled: int = 0
) -> str:
    """Return who teaches whom, which classes match and which terms are on.

    Args:
        args (Namespace): Arguments of the training.
        student (nn.Module): The student.
        teacher (Teacher): The teacher.
        distiller (Distiller): The terms.
        beginning (str): Which weights the student begins with, as `beginning` says.
        unlabeled (int): Number of images without labels.
    """
    assert teacher.classes is not None
    shares = teacher.shares
    rows = [
        *(("teacher", _teacher(m, args.imgsz, share, len(shares))) for m, share in zip(teacher.members, shares)),
        ("student", f"{_size(get_num_params(student), get_flops(student, args.imgsz))}  {args.model}"),
        ("weights", beginning),
        ("classes", _classes(teacher, "name" if str(args.kd_classes).lower() == "auto" else "kd_classes")),
        ("levels", distiller.levels),
    ]
    if unlabeled:
        rows.append(("images", f"{unlabeled:,} without labels, {args.kd_unlabeled_ratio:g} for each with labels"))
    for name in distiller.names:
        if name not in distiller.terms:
            rows.append((name, "off"))
            continue
        adapters = distiller.terms[name].adapters
        size = get_num_params(adapters) if adapters is not None else 0
        extra = f", adapters of {size:,} parameters that do not ship" if size else ""
        rows.append((name, f"{_loss(args, name)}{distiller.weights[name]:g}, {args.kd_schedule}{extra}"))
    return "\n".join([colorstr("Distillation:"), *(f"    {name:<8} {text}" for name, text in rows), ""])


def beginning(student: nn.Module, asked: bool, untrained: bool, initialized: int) -> str:
    """Return which weights the student begins with.

    Args:
        student (nn.Module): The student.
        asked (bool): The `kd_init` argument.
        untrained (bool): Whether the student came without trained weights.
        initialized (int): Number of its parameters that the teacher's weights began.
    """
    if not untrained:
        return "the student's own, trained"
    if initialized:
        return f"{initialized:,} of {get_num_params(student):,} parameters from the teacher (kd_init)"
    return f"random ({'kd_init: the teacher is no bigger model of the same kind' if asked else 'kd_init=False'})"


def end_table(student: dict[str, float], teacher: dict[str, float], model: nn.Module, answerer: Teacher) -> str:
    """Return student and teacher side by side on the same val set.

    Args:
        student (dict[str, float]): Metrics of the best student.
        teacher (dict[str, float]): Metrics of the teacher.
        model (nn.Module): The student.
        answerer (Teacher): The teacher.
    """
    main = TASK2METRIC[answerer.task]
    keys = [main, *(k for k in student if k.startswith("metrics/") and k != main)]
    title = f"    {'':<8}{'params':>12}" + "".join(f"{k.removeprefix('metrics/'):>14}" for k in keys)
    lines = [colorstr("Distillation:"), title]
    for name, size, scores in (
        ("teacher", answerer.parameters(), teacher),
        ("student", get_num_params(model), student),
    ):
        values = "".join(f"{scores[k]:>14.4f}" if k in scores else f"{'-':>14}" for k in keys)
        lines.append(f"    {name:<8}{f'{size:,}' if size else '-':>12}{values}")
    assert answerer.classes is not None
    if answerer.classes.unmatched:  # they count as missed by the teacher, which makes a ratio meaningless
        known = len(answerer.classes.student_names) - len(answerer.classes.unmatched)
        lines.append(f"    The teacher knows {known} of the {len(answerer.classes.student_names)} classes.")
    elif teacher.get(main):
        lines.append(f"    The student keeps {student[main] / teacher[main]:.1%} of the teacher's {main}.")
    return "\n".join(lines)


def _size(parameters: int, gflops: float) -> str:
    """Return parameters and GFLOPs in columns, as far as they are known."""
    if not parameters:
        return f"{'of unknown size':>41}"
    return f"{parameters:>12,} parameters {gflops:>7.1f} GFLOPs"


def _teacher(teacher: Teacher, imgsz: int, share: float, count: int) -> str:
    """Return what a teacher is, and what it counts beside others."""
    size = _size(teacher.parameters(), teacher.gflops(imgsz))
    return f"{size}  {teacher.source}" + (f" (weight {share:.0%})" if count > 1 else "")


def _loss(args: Any, name: str) -> str:
    """Return the loss of a term, if it has a choice."""
    if name == "kd_cls":
        return f"{class_loss(args, args.task)} x "
    loss = getattr(args, f"{name}_loss", None)
    return f"{loss} x " if loss else ""


def _classes(teacher: Teacher, matched_by: str) -> str:
    """Return how many classes are matched, and which are not."""
    assert teacher.classes is not None
    total, unmatched = len(teacher.classes.student_names), teacher.classes.unmatched
    text = f"{total - len(unmatched)} of {total} matched by {matched_by}"
    plurals = [pair for m in teacher.members if m.classes for pair in m.classes.plurals]
    if plurals:
        text += f", of them as plural and singular: {', '.join(f'{a} = {b}' for a, b in dict.fromkeys(plurals))}"
    return text + (
        f"; from labels alone: {', '.join(unmatched[:8])}{' ...' if len(unmatched) > 8 else ''}" if unmatched else ""
    )
