"""Weight selection (`kd_init`): a student begins with a part of its teacher's weights.

Xu et al., "Initializing Models with Larger Ones" (ICLR 2024, https://arxiv.org/abs/2311.18823): the smaller model takes
evenly spaced channels of every layer of the bigger one. Here each convolution takes the input channels that the layers
before it selected. So student and teacher compute related features. `channel_picks` selects the channels of hidden
layers. Each output channel of the head has a meaning, so `output_channels` selects them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils import LOGGER

from ..errors import first_line
from ..screen import row
from .block_counterparts import block_targets
from .channel_importance import Importance, measure_importance
from .channel_picks import Pick, Picks, evenly
from .norm_statistics import measure_statistics
from .output_channels import OutputChannels, keypoint_names
from .weight_fitting import Target, fit_weights

CALIBRATION = ("cal_a", "cal_b")  # buffers of a depth head, of which Ultralytics fits both after a training
OF_A_LAYER = re.compile(r"\d+\.(cv\d+\.)?conv")  # convolutions at a layer's inputs and outputs
Rows = tuple[Pick, Pick]  # the student's output channels that are set, and the teacher's that they take


def select_weights(
    student: Any,
    teacher: Any,
    classes: Mapping[int, int] | None = None,
    keypoints: Sequence[str] | None = None,
    images: Tensor | None = None,
    fit: bool = True,
) -> int:
    """Copy a part of a teacher's weights into a student, and refit it on images if there are any.

    Args:
        student (nn.Module): Ultralytics model, changed in place.
        teacher (nn.Module): Trained model of the same architecture, as big or bigger; it is not changed.
        classes (Mapping[int, int], optional): Student class -> teacher class whose scores it takes; other student
            classes keep their weights. None if both have the same classes in the same order.
        keypoints (Sequence[str], optional): Names of the student's keypoints, None if they are unknown.
        images (Tensor, optional): Training images, shape (N, C, H, W). Without them the student has the teacher's
            BatchNorm statistics, which fit only a student of the teacher's size.
        fit (bool): Take the channels that matter most on the images, and refit their weights to the teacher's
            activations. If False, channels are evenly spaced, and only the BatchNorm statistics are measured on the
            images. A student of the teacher's size needs neither.

    Returns:
        (int): Number of the student's parameters that were set; 0 if the architectures differ or the teacher is
            smaller. A wider student would have duplicate channels, which get the same gradient and stay equal.

    Examples:
        >>> student = DetectionModel("yolo26n.yaml", nc=80)
        >>> select_weights(student, load_checkpoint("yolo26s.pt")[0])  # both score the same 80 classes
    """
    if not as_big_alike(student, teacher):
        return 0
    names = keypoints, keypoint_names(getattr(teacher, "kpt_names", None))
    picks, count = Picks(student, teacher, _importance(teacher, images) if fit and images is not None else None), 0
    channels = OutputChannels(student.model[-1], teacher.model[-1], classes, names)
    foreign = _foreign_layers(picks)
    plan = _plan(picks, f"model.{len(student.model) - 1}.", channels)
    plan = {name: rows for name, rows in plan.items() if not name.startswith(tuple(f"{layer}." for layer in foreign))}
    with torch.no_grad():
        for name, rows in plan.items():
            module, source = picks.student[name], picks.teacher[name]
            if isinstance(module, nn.Conv2d):
                count += _copy_conv(module, source, picks.norms(name), rows, picks.of(name)[1])
            else:
                count += _copy_linear_or_upsampling(module, source, rows)
        count += _copy_scales(picks) + _copy_whole(picks, foreign)
        if count:  # these are as they must be
            count += sum(p.numel() for name, p in student.named_parameters() if _is_constant(name))
            _copy_calibration(student, teacher)
    if count and images is not None:
        convs = {name: rows for name, rows in plan.items() if isinstance(picks.student[name], nn.Conv2d)}
        others = block_targets(picks)
        widths = all(picks.student[n].in_channels == picks.teacher[n].in_channels for n in convs)
        copied = not others and widths and _names_below_head(student) == _names_below_head(teacher)
        if fit and copied:
            LOGGER.info("kd_init: the teacher has the student's size, so its weights are copied and not refitted")
        elif fit:
            count += _fit(student, teacher, images, convs, others, picks)
        elif not copied:
            measure_statistics(student, images)
    return count


def _names_below_head(model: Any) -> set[str]:
    """Return the names of all modules below the head; a deeper model has more."""
    return {name for name, _ in model.model[:-1].named_modules()}


def _importance(teacher: Any, images: Tensor) -> dict[str, Importance]:
    """Return how much each channel of a teacher matters; an empty dict, after a warning, if it has no gradients."""
    try:
        return measure_importance(teacher, images)
    except RuntimeError as e:  # a user's own module changes its input in place, or memory is short
        LOGGER.warning(
            f"kd_init: the teacher's channels are taken evenly spaced, as it gives no gradients: {first_line(e)}"
        )
        return {}


def _fit(
    student: Any,
    teacher: Any,
    images: Tensor,
    convs: Mapping[str, Rows],
    others: Mapping[str, Target],
    picks: Picks,
) -> int:
    """Refit the selected convolutions, fit those in blocks that differ from the teacher's, and log how well they fit.

    Args:
        student (nn.Module): The student.
        teacher (nn.Module): The teacher.
        images (Tensor): Training images.
        convs (Mapping[str, Rows]): The selected convolutions and their channels.
        others (Mapping[str, Target]): Targets of convolutions in blocks that differ.
        picks (Picks): Modules of both models.

    Returns:
        (int): Number of parameters that were set and had not been selected.
    """
    selected = {name: Target(targets, name, taken) for name, (targets, taken) in convs.items()}
    fits = fit_weights(student, teacher, images, {**selected, **others})
    text = (
        f"{len(fits)} convolutions fitted to the teacher's on {len(images)} images. They reproduce "
        f"{sum(fits.values()) / len(fits):.1%} of its activations, the worst {min(fits.values()):.1%}."
    )
    LOGGER.info("\n".join(row("kd_init:", text, column=9, indent=0)))
    added = [module for name in fits.keys() - convs.keys() for module in (picks.student[name], picks.norms(name)[0])]
    return sum(p.numel() for module in added if module is not None for p in module.parameters())


def _plan(picks: Picks, head: str, channels: OutputChannels) -> dict[str, Rows]:
    """Return which output channels each of the student's layers takes.

    The head's output layers take channels only if the layers that they read take channels too.

    Args:
        picks (Picks): Channels of hidden layers.
        head (str): Prefix of the names of the head's layers.
        channels (OutputChannels): Channels of the head's output layers.
    """
    plan: dict[str, Rows] = {}
    outputs: dict[str, str] = {}  # output layers, and the group of each
    incomplete = set()
    for name, module in picks.student.items():
        if not isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)) or _is_constant(name):
            continue
        path = name.removeprefix(head) if name.startswith(head) else ""
        last = path and not isinstance(module, nn.ConvTranspose2d) and picks.norms(name)[0] is None
        rows = None
        if picks.alike(name) and _fits(module, picks.teacher[name], picks.norms(name)):
            rows = _rows(picks, name, path if last else "", channels)
        if rows is not None:
            plan[name] = rows
        group = channels.group(path) if path else ""
        if last or group == "masks":
            outputs[name] = group
        if rows is None and path and (not last or group == "masks"):
            incomplete.add(group)
    return {name: rows for name, rows in plan.items() if outputs.get(name) not in incomplete}


def _rows(picks: Picks, name: str, output: str, channels: OutputChannels) -> Rows | None:
    """Return which output channels a layer takes, None for no channels.

    Args:
        picks (Picks): Channels of hidden layers.
        name (str): The layer's name.
        output (str): Its name within the head if it is an output layer, otherwise empty.
        channels (OutputChannels): Channels of output layers.
    """
    module, source = picks.student[name], picks.teacher[name]
    if isinstance(module, nn.Linear):
        ours, theirs = module.out_features, source.out_features
    else:
        ours, theirs = module.out_channels, source.out_channels
    if output:
        return channels.rows(output, ours, theirs)
    if ours > theirs or (isinstance(module, nn.Linear) and ours != theirs):
        return None
    if not isinstance(module, nn.Conv2d):
        return torch.arange(ours), evenly(ours, theirs)
    taken, inputs = picks.of(name)
    if len(taken) != ours or (module.groups == 1 and len(inputs) != module.in_channels):
        return None  # in a block that is put together in another way than the known ones
    return torch.arange(ours), taken


def _is_constant(name: str) -> bool:
    """Return whether a layer's weights are no weights: those of `dfl` are the bins 0 to 15, which nobody trains."""
    return "dfl" in name.split(".")


def _foreign_layers(picks: Picks) -> list[str]:
    """Return the layers below the head with a BatchNorm that is not behind a convolution of Ultralytics'.

    Such layers are other libraries' backbones, or put their parts together in their own way.

    Args:
        picks (Picks): Modules of both models.
    """
    layers = [name for name in picks.student if name.startswith("model.") and name.count(".") == 1]
    paired = {id(picks.norms(name)[0]) for name in picks.student if name.endswith(".conv")}
    return [
        name
        for name in layers[:-1]
        if any(isinstance(m, nn.BatchNorm2d) and id(m) not in paired for m in picks.student[name].modules())
    ]


def _copy_whole(picks: Picks, layers: Sequence[str]) -> int:
    """Copy layers whose state has the same shapes in both models, and return the number of parameters.

    Args:
        picks (Picks): Modules of both models.
        layers (Sequence[str]): Names of layers.
    """
    count = 0
    for name in layers:
        ours, theirs = picks.student[name].state_dict(), picks.teacher[name].state_dict()
        if {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}:
            picks.student[name].load_state_dict(theirs)
            count += sum(p.numel() for p in picks.student[name].parameters())
    return count


def _copy_scales(picks: Picks) -> int:
    """Copy the factors of blocks that add a scaled part to what they read (A2C2f), and return their number.

    Args:
        picks (Picks): Channels of hidden layers.
    """
    count = 0
    for name, module in picks.student.items():
        ours, theirs = (getattr(m, "gamma", None) for m in (module, picks.teacher.get(name)))
        if not isinstance(ours, nn.Parameter) or not isinstance(theirs, nn.Parameter):
            continue
        pick = picks.output(name)
        if pick is not None and len(pick) == len(ours):
            ours.copy_(theirs[pick])
            count += ours.numel()
    return count


def _fits(module: Any, source: Any, norms: tuple[Any, Any]) -> bool:
    """Return whether a layer could take weights of the teacher's layer.

    A fused teacher has biases instead of BatchNorm: its convolutions do not fit a student with BatchNorm.

    Args:
        module (nn.Module): The student's layer.
        source (nn.Module): The teacher's layer, of the same type.
        norms (tuple): The BatchNorms of student and teacher behind it, or None.
    """
    if (module.bias is None) != (source.bias is None) or (norms[0] is None) != (norms[1] is None):
        return False
    if isinstance(module, nn.Linear):  # in a classifier, flow or transformer: as many inputs at every scale
        return module.in_features == source.in_features
    if module.kernel_size != source.kernel_size or (module.groups > 1) != (source.groups > 1):
        return False
    if module.groups > 1:
        return module.weight.shape[1] == source.weight.shape[1]
    return module.in_channels <= source.in_channels


def _copy_linear_or_upsampling(module: Any, source: Any, rows: Rows) -> int:
    """Copy a linear layer or an upsampling convolution, and return the number of parameters.

    The upsampling is part of a mask head, whose other layers take evenly spaced channels.
    """
    targets, outputs = rows
    if isinstance(module, nn.Linear):
        module.weight[targets] = source.weight[outputs]
        count = source.weight[outputs].numel()
    else:
        inputs = evenly(module.in_channels, source.in_channels)
        module.weight.copy_(source.weight[inputs][:, outputs] * (source.in_channels / len(inputs)))
        count = module.weight.numel()
    if module.bias is not None:
        module.bias[targets] = source.bias[outputs]
        count += len(targets)
    return count


def _copy_conv(module: nn.Conv2d, source: nn.Conv2d, norms: tuple[Any, Any], rows: Rows, inputs: Pick) -> int:
    """Copy the chosen channels of a convolution and the BatchNorm behind it, and return the number of parameters.

    Args:
        module (nn.Conv2d): The student's convolution.
        source (nn.Conv2d): The teacher's convolution.
        norms (tuple): The BatchNorms of student and teacher behind it, or None.
        rows (tuple): The student's output channels that are set, and the teacher's that they take.
        inputs (Tensor): The teacher's input channels that are taken.
    """
    targets, outputs = rows
    weight = source.weight[outputs] if module.groups > 1 else source.weight[outputs][:, inputs]
    norm, source_norm = norms
    # The student sums over fewer inputs. BatchNorm corrects that; without it, the weights are scaled up
    factor = 1.0 if norm is not None or module.groups > 1 else source.in_channels / len(inputs)
    module.weight[targets] = weight * factor
    count = weight.numel()
    if module.bias is not None and source.bias is not None:
        module.bias[targets] = source.bias[outputs]
        count += len(targets)
    if norm is not None:
        state = source_norm.state_dict()
        for key, value in norm.state_dict().items():  # these tensors share memory with the norm's
            value.copy_(state[key][outputs] if value.dim() else state[key])
        count += sum(p.numel() for p in norm.parameters())
    return count


def _copy_calibration(student: Any, teacher: Any) -> None:
    """Copy the calibration of depth, two buffers of the head: that of other weights would shift all predictions."""
    theirs = dict(teacher.model[-1].named_buffers(recurse=False))
    for name, buffer in student.model[-1].named_buffers(recurse=False):
        if name in CALIBRATION and name in theirs:
            buffer.copy_(theirs[name])


def as_big_alike(student: Any, teacher: Any) -> bool:
    """Return whether a teacher is a model of the student's architecture, and as big or bigger.

    No layer of the student is wider either: YOLOv8m is smaller than YOLOv8l, and has 576 channels where that has 512.
    The layers that read these would stay random, among them all output layers of the head.

    The number of classes changes the size of a head, so heads do not count. A fused teacher has no norm layers, whose
    statistics the student needs.
    """
    normed = [any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) for model in (student, teacher)]
    if not same_architecture(student, teacher) or normed[0] > normed[1]:
        return False
    ours, theirs = (sum(p.numel() for p in m.model[:-1].parameters() if p.dim() > 1) for m in (student, teacher))
    widths, others = (_widths(model) for model in (student, teacher))
    return theirs >= ours and all(width <= others.get(name, width) for name, width in widths.items())


def _widths(model: Any) -> dict[str, int]:
    """Return the output channels of the layers below the head, by the names of their convolutions."""
    convs = ((name, m) for name, m in model.model[:-1].named_modules() if isinstance(m, nn.Conv2d))
    return {name: m.out_channels for name, m in convs if OF_A_LAYER.fullmatch(name)}


def same_architecture(student: Any, teacher: Any) -> bool:
    """Return whether two models were built from the same layers, at any scales."""
    built = [getattr(m, "yaml", None) or {} for m in (student, teacher)]  # a model of another library has no `yaml`
    keys = ("backbone", "head", "reg_max", "end2end")
    channels = [layout.get("channels", layout.get("ch", 3)) for layout in built]  # older releases wrote `ch`
    return bool(built[0]) and channels[0] == channels[1] and all(built[0].get(k) == built[1].get(k) for k in keys)
