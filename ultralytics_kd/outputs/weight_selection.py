"""Weight selection (`kd_init`): an untrained student begins with a part of its teacher's weights.

Xu et al., "Initializing Models with Larger Ones" (ICLR 2024, https://arxiv.org/abs/2311.18823): the smaller model takes
evenly spaced channels of every layer of the bigger one. Here each convolution takes the input channels that the layers
before it selected. So student and teacher compute related features. Each part of a model takes:

    Convolutions and BatchNorm: evenly spaced output channels, and the input channels that its sources selected.
    Concatenations: the channels of each source, at their positions in the teacher's concatenation.
    Split blocks (C2f, C3k2, A2C2f): evenly spaced channels of each chunk, never across chunks.
    Attention: whole heads, evenly spaced. A head keeps its queries, keys and values together; single channels would
        turn queries into keys. `proj` and `pe` take the channels of the same heads. If the heads differ in width
        (`head_dim`), `qkv`, `proj` and `pe` take evenly spaced channels, as any convolution does.
    Output head: class scores from the matching classes of the teacher, everything else as above.

Blocks are recognised by the names that Ultralytics gives their parts: cv1, cv2, m, qkv, proj, pe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.torch_utils import get_num_params

Pick = Tensor  # indices of the teacher's channels that the student takes, in the student's order


def select_weights(student: Any, teacher: Any, classes: Mapping[int, int] | None = None) -> int:
    """Copy an evenly spaced part of a teacher's weights into a student.

    Args:
        student (nn.Module): Ultralytics model, changed in place.
        teacher (nn.Module): Trained model of the same architecture at a bigger scale; it is not changed.
        classes (Mapping[int, int], optional): Student class -> teacher class whose scores it takes; other student
            classes keep their weights. None if both have the same classes in the same order.

    Returns:
        (int): Number of the student's parameters that were set; 0 if the architectures differ or the teacher is not
            bigger. A student of the same size would be a copy. A wider student would have duplicate channels, which get
            the same gradient and stay equal.

    Examples:
        >>> student = DetectionModel("yolo26n.yaml", nc=80)
        >>> select_weights(student, load_checkpoint("yolo26s.pt")[0])  # both score the same 80 classes
    """
    if not same_architecture(student, teacher) or get_num_params(teacher) <= get_num_params(student):
        return 0
    picks, count = Picks(student, teacher), 0
    head = f"model.{len(student.model) - 1}."
    with torch.no_grad():
        for name, module in student.named_modules():
            if not picks.alike(name):
                continue
            source = picks.teacher[name]
            if isinstance(module, (nn.Linear, nn.ConvTranspose2d)):
                count += _copy_linear_or_upsampling(module, source, classes if name == f"{head}linear" else None)
            if not isinstance(module, nn.Conv2d):
                continue
            norms = picks.norms(name)
            outputs, inputs = picks.of(name)
            targets = torch.arange(module.out_channels)
            if classes is not None and name.startswith(head) and _scores_classes(name) and module.bias is not None:
                targets, outputs = torch.tensor(list(classes)), torch.tensor(list(classes.values()))
            elif module.out_channels > source.out_channels:
                continue
            # A fused teacher has biases instead of BatchNorm: its convolutions do not fit a student with BatchNorm
            if module.in_channels <= source.in_channels and (norms[0] is None) == (norms[1] is None):
                count += _copy_conv(module, source, norms, targets, outputs, inputs)
    return count


def _scores_classes(name: str) -> bool:
    """Return whether a convolution is in a head's class tower; the one with a bias outputs the class scores."""
    return bool({"cv3", "one2one_cv3", "classifier", "aux_head", "semseg"} & set(name.split(".")))


def _copy_linear_or_upsampling(module: Any, source: Any, classes: Mapping[int, int] | None) -> int:
    """Copy a linear layer or an upsampling convolution, and return the number of parameters.

    Linear layers are a classifier's last layer, which has the same number of inputs at every scale, and those of a
    normalising flow, which has the same size at every scale. The upsampling is part of a mask head, whose other layers
    take evenly spaced channels.
    """
    if isinstance(module, nn.Linear):
        if module.in_features != source.in_features or (module.bias is None) != (source.bias is None):
            return 0
        targets = torch.arange(module.out_features) if classes is None else torch.tensor(list(classes))
        outputs = targets if classes is None else torch.tensor(list(classes.values()))
        if classes is None and module.out_features != source.out_features:
            return 0
        module.weight[targets] = source.weight[outputs]
        if module.bias is not None:
            module.bias[targets] = source.bias[outputs]
        return source.weight[outputs].numel() + (0 if module.bias is None else len(targets))
    inputs = evenly(module.in_channels, source.in_channels)
    outputs = evenly(module.out_channels, source.out_channels)
    module.weight.copy_(source.weight[inputs][:, outputs] * (source.in_channels / len(inputs)))
    module.bias.copy_(source.bias[outputs])
    return module.weight.numel() + module.bias.numel()


def _copy_conv(
    module: nn.Conv2d, source: nn.Conv2d, norms: tuple[Any, Any], targets: Pick, outputs: Pick, inputs: Pick
) -> int:
    """Copy the chosen channels of a convolution and the BatchNorm behind it, and return the number of parameters.

    Args:
        module (nn.Conv2d): The student's convolution.
        source (nn.Conv2d): The teacher's convolution.
        norms (tuple): The BatchNorms of student and teacher behind it, or None.
        targets (Tensor): The student's output channels that are set.
        outputs (Tensor): The teacher's output channels that they take.
        inputs (Tensor): The teacher's input channels that are taken.
    """
    weight = source.weight[outputs] if module.groups > 1 else source.weight[outputs][:, inputs]
    if weight.shape[1:] != module.weight.shape[1:]:
        return 0
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


def same_architecture(student: Any, teacher: Any) -> bool:
    """Return whether two models were built from the same layers, at any scales."""
    built = [getattr(m, "yaml", None) or {} for m in (student, teacher)]  # a model of another library has no `yaml`
    keys = ("backbone", "head", "reg_max", "end2end", "channels")
    return bool(built[0]) and all(built[0].get(k) == built[1].get(k) for k in keys)


class Picks:
    """The teacher's channels that each of the student's convolutions takes.

    Attributes:
        student (dict[str, nn.Module]): The student's modules by name.
        teacher (dict[str, nn.Module]): The teacher's modules by name.
        inputs (dict[str, Tensor]): Input channels by convolution, where they are not evenly spaced.
        outputs (dict[str, Tensor]): Output channels by convolution, where they are not evenly spaced.
    """

    def __init__(self, student: Any, teacher: Any):
        """Follow the layers of both models, then the inside of each block."""
        self.student = dict(student.named_modules())
        self.teacher: dict[str, Any] = dict(teacher.named_modules())
        self.inputs: dict[str, Pick] = {}
        self.outputs: dict[str, Pick] = {}
        self._follow_layers(student)
        for name, module in self.student.items():
            if self.alike(name):
                self._follow_block(name, module, self.teacher[name])

    def alike(self, name: str) -> bool:
        """Return whether the teacher has a module of that name, with the same type and parents of the same types."""
        parts = name.split(".")
        names = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return all(n in self.teacher and type(self.student[n]) is type(self.teacher[n]) for n in names)

    def of(self, name: str) -> tuple[Pick, Pick]:
        """Return the teacher's output and input channels for one of the student's convolutions."""
        conv, source = self.student[name], self.teacher[name]
        outputs = self.outputs.get(name, evenly(conv.out_channels, source.out_channels))
        return outputs, self.inputs.get(name, evenly(conv.in_channels, source.in_channels))

    def norms(self, name: str) -> tuple[Any, Any]:
        """Return the student's and the teacher's BatchNorm behind a convolution; None where there is none."""
        if not name.endswith(".conv"):
            return None, None
        norm = f"{name.removesuffix('conv')}bn"
        return self.student.get(norm), self.teacher.get(norm)

    def _follow_layers(self, student: Any) -> None:
        """Set the input channels of each layer to those that its sources selected."""
        layer_picks: list[Pick | None] = []
        for i, layer in enumerate(student.model):
            name = f"model.{i}"
            sources = [layer_picks[f if f >= 0 else i + f] if i else None for f in _as_list(layer.f)]
            if type(layer).__name__ == "Concat":
                layer_picks.append(self._concatenated(sources, [f if f >= 0 else i + f for f in _as_list(layer.f)]))
            elif not any(True for _ in layer.parameters()):
                layer_picks.append(sources[0])
            else:
                entry = f"{name}.cv1.conv"
                if entry in self.student and sources[0] is not None:
                    self.inputs[entry] = sources[0]
                layer_picks.append(self.output(name))

    def output(self, name: str) -> Pick | None:
        """Return the output channels of a layer: those of its last convolution, which blocks call cv2."""
        for last in (f"{name}.cv2.conv", f"{name}.conv"):
            if isinstance(self.student.get(last), nn.Conv2d) and last in self.teacher:
                return evenly(self.student[last].out_channels, self.teacher[last].out_channels)
        return None

    def _concatenated(self, sources: list[Pick | None], layers: list[int]) -> Pick | None:
        """Return the channels of a concatenation, at their positions in the teacher's."""
        offset, parts = 0, []
        for pick, layer in zip(sources, layers):
            width = self._teacher_width(layer)
            if pick is None or width is None:
                return None
            parts.append(pick + offset)
            offset += width
        return torch.cat(parts)

    def _teacher_width(self, layer: int) -> int | None:
        """Return the number of output channels of one of the teacher's layers."""
        module = self.teacher[f"model.{layer}"]
        if type(module).__name__ == "Upsample":
            return self._teacher_width(layer + module.f)
        last = self.teacher.get(f"model.{layer}.cv2.conv") or self.teacher.get(f"model.{layer}.conv")
        return last.out_channels if last is not None else None

    def _follow_block(self, name: str, block: Any, source: Any) -> None:
        """Set the channels inside a block where evenly spaced ones would mix its chunks or attention heads."""
        if isinstance(getattr(block, "m", None), nn.ModuleList) and hasattr(block, "cv2"):  # C2f and its relatives
            # cv2 reads the chunks of cv1 (two of `c` channels in C2f, one in A2C2f), then one chunk per inner block
            width, source_width = (getattr(each, "c", each.cv1.conv.out_channels) for each in (block, source))
            chunks = range(block.cv2.conv.in_channels // width)
            picks = [evenly(width, source_width) + chunk * source_width for chunk in chunks]
            self.inputs[f"{name}.cv2.conv"] = torch.cat(picks)
        elif hasattr(block, "qkv") and block.head_dim == source.head_dim:
            heads = evenly(block.num_heads, source.num_heads)
            key_dim = getattr(block, "key_dim", block.head_dim)
            self.outputs[f"{name}.qkv.conv"] = _head_channels(heads, block.head_dim + 2 * key_dim)
            values = _head_channels(heads, block.head_dim)
            self.inputs[f"{name}.proj.conv"] = values
            self.outputs[f"{name}.pe.conv"] = self.inputs[f"{name}.pe.conv"] = values


def evenly(student: int, teacher: int) -> Pick:
    """Return evenly spaced indices into the teacher's channels, as many as the student has."""
    return (torch.arange(student) * teacher).div(max(student, 1), rounding_mode="floor")


def _head_channels(heads: Pick, width: int) -> Pick:
    """Return the channels of whole attention heads, each `width` channels wide."""
    return (heads[:, None] * width + torch.arange(width)).flatten()


def _as_list(value: int | list[int]) -> list[int]:
    """Return the indices of the layers that a layer reads, as a list."""
    return value if isinstance(value, list) else [value]
