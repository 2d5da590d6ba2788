"""Weight selection: a student without trained weights begins with a part of its teacher's.

Xu et al., "Initializing Models with Larger Ones" (ICLR 2024, https://arxiv.org/abs/2311.18823): of every layer of the
bigger model the smaller one takes evenly spaced channels. Here the channels that a convolution reads are also those
that the layers before it took, through concatenations, split blocks and attention heads, so that what student and
teacher compute stays related. It knows Ultralytics' building blocks by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.torch_utils import get_num_params

Pick = Tensor  # indices of the teacher's channels that the student takes, in order


def never_trained(model: Any) -> bool:
    """Return whether a model has the random weights it was built with.

    Searches and sweeps save a student that was built from a YAML to a file for the processes that train it, which would
    take it for one with weights of its own. What tells is that its norms have never seen a batch.

    Args:
        model (nn.Module): Ultralytics model; one without norms, as after fusing, counts as trained.
    """
    norms = [m.state_dict() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return bool(norms) and not any(n["running_mean"].any() or (n["running_var"] != 1).any() for n in norms)


def select_weights(student: Any, teacher: Any, classes: Mapping[int, int] | None = None) -> int:
    """Give a student the evenly spaced part of a teacher's weights, in place.

    Args:
        student (nn.Module): Ultralytics model to begin with.
        teacher (nn.Module): Trained model of the same architecture at another scale; not changed.
        classes (Mapping[int, int], optional): The teacher's class that each of the student's takes the scores of; those
            that are not in it keep their own. None if both have the same classes in the same order.

    Returns:
        (int): Number of the student's parameters that were set; 0 if the architectures differ or the teacher is no
            bigger: a student of its size would begin as its copy, and a wider one with twin channels that no gradient
            ever tells apart.
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
                count += _take_whole(module, source, classes if name == f"{head}linear" else None)
            if not isinstance(module, nn.Conv2d):
                continue
            norms = picks.norms(name)
            rows, columns = picks.of(name)
            into = torch.arange(module.out_channels)
            if classes is not None and name.startswith(head) and _scores_classes(name) and module.bias is not None:
                into, rows = torch.tensor(list(classes)), torch.tensor(list(classes.values()))
            elif module.out_channels > source.out_channels:
                continue
            # A teacher that was fused has no norms, and biases in their place
            if module.in_channels <= source.in_channels and (norms[0] is None) == (norms[1] is None):
                count += _take(module, source, norms, into, rows, columns)
    return count


def _scores_classes(name: str) -> bool:
    """Return whether a convolution in a head ends in class scores, if it has a bias."""
    return bool({"cv3", "one2one_cv3", "classifier", "aux_head", "semseg"} & set(name.split(".")))


def _take_whole(module: Any, source: Any, classes: Mapping[int, int] | None) -> int:
    """Copy a layer without BatchNorm that no other layer's picks depend on, and return the number of parameters.

    They are a classifier's last layer, which reads as many channels at every scale, the layers of a flow, which has one
    size, and the upsampling in a mask head, whose neighbours take evenly spaced channels.
    """
    if isinstance(module, nn.Linear):
        if module.in_features != source.in_features or (module.bias is None) != (source.bias is None):
            return 0
        into = torch.arange(module.out_features) if classes is None else torch.tensor(list(classes))
        rows = into if classes is None else torch.tensor(list(classes.values()))
        if classes is None and module.out_features != source.out_features:
            return 0
        module.weight[into] = source.weight[rows]
        if module.bias is not None:
            module.bias[into] = source.bias[rows]
        return source.weight[rows].numel() + (0 if module.bias is None else len(into))
    rows, columns = (
        evenly(ours, theirs)
        for ours, theirs in ((module.in_channels, source.in_channels), (module.out_channels, source.out_channels))
    )
    module.weight.copy_(source.weight[rows][:, columns] * (source.in_channels / len(rows)))
    module.bias.copy_(source.bias[columns])
    return module.weight.numel() + module.bias.numel()


def _take(module: nn.Conv2d, source: nn.Conv2d, norms: tuple[Any, Any], into: Pick, rows: Pick, columns: Pick) -> int:
    """Copy the picked channels of a convolution and the BatchNorm behind it, and return the number of parameters."""
    weight = source.weight[rows] if module.groups > 1 else source.weight[rows][:, columns]
    if weight.shape[1:] != module.weight.shape[1:]:
        return 0
    norm, its = norms
    # Without BatchNorm after it, a sum over a part of the inputs has to stand for the whole
    module.weight[into] = weight * (1.0 if norm is not None or module.groups > 1 else source.in_channels / len(columns))
    count = weight.numel()
    if module.bias is not None and source.bias is not None:
        module.bias[into] = source.bias[rows]
        count += len(into)
    if norm is not None:
        theirs = its.state_dict()
        for key, value in norm.state_dict().items():  # tensors that share the norm's memory
            value.copy_(theirs[key][rows] if value.dim() else theirs[key])
        count += sum(p.numel() for p in norm.parameters())
    return count


def same_architecture(student: Any, teacher: Any) -> bool:
    """Return whether two models were built from the same layers, at whatever scales."""
    ours, theirs = (getattr(m, "yaml", None) or {} for m in (student, teacher))
    keys = ("backbone", "head", "reg_max", "end2end", "channels")
    return bool(ours) and all(ours.get(k) == theirs.get(k) for k in keys)


class Picks:
    """Which of the teacher's channels each of the student's convolutions takes.

    Attributes:
        teacher (dict[str, nn.Module]): The teacher's modules by name.
    """

    def __init__(self, student: Any, teacher: Any):
        self.student = dict(student.named_modules())
        self.teacher: dict[str, Any] = dict(teacher.named_modules())
        self.inputs: dict[str, Pick] = {}
        self.outputs: dict[str, Pick] = {}
        self._follow_layers(student)
        for name, module in self.student.items():
            if self.alike(name):
                self._follow_block(name, module, self.teacher[name])

    def alike(self, name: str) -> bool:
        """Return whether the teacher has a module by that name, of the same type inside modules of the same types."""
        parts = name.split(".")
        names = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return all(n in self.teacher and type(self.student[n]) is type(self.teacher[n]) for n in names)

    def of(self, name: str) -> tuple[Pick, Pick]:
        """Return the teacher's output and input channels for one of the student's convolutions."""
        ours, theirs = self.student[name], self.teacher[name]
        outputs = self.outputs.get(name, evenly(ours.out_channels, theirs.out_channels))
        return outputs, self.inputs.get(name, evenly(ours.in_channels, theirs.in_channels))

    def norms(self, name: str) -> tuple[Any, Any]:
        """Return the student's and teacher's BatchNorm behind a convolution, None without one."""
        if not name.endswith(".conv"):
            return None, None
        other = f"{name.removesuffix('conv')}bn"
        return self.student.get(other), self.teacher.get(other)

    def _follow_layers(self, student: Any) -> None:
        """Note what layers behind a concatenation read: the channels that each of its sources took."""
        made: list[Pick | None] = []
        for i, layer in enumerate(student.model):
            name = f"model.{i}"
            sources = [made[f if f >= 0 else i + f] if i else None for f in _as_list(layer.f)]
            if type(layer).__name__ == "Concat":
                made.append(self._concatenated(sources, [f if f >= 0 else i + f for f in _as_list(layer.f)]))
            elif not any(True for _ in layer.parameters()):
                made.append(sources[0])
            else:
                entry = f"{name}.cv1.conv"
                if entry in self.student and sources[0] is not None:
                    self.inputs[entry] = sources[0]
                made.append(self.output(name))

    def output(self, name: str) -> Pick | None:
        """Return what a layer of convolutions puts out; its last one is called cv2 in blocks."""
        for last in (f"{name}.cv2.conv", f"{name}.conv"):
            if isinstance(self.student.get(last), nn.Conv2d) and last in self.teacher:
                return evenly(self.student[last].out_channels, self.teacher[last].out_channels)
        return None

    def _concatenated(self, sources: list[Pick | None], layers: list[int]) -> Pick | None:
        """Return the channels of a concatenation, numbered as in the teacher's."""
        offset, parts = 0, []
        for pick, layer in zip(sources, layers):
            width = self._teacher_width(layer)
            if pick is None or width is None:
                return None
            parts.append(pick + offset)
            offset += width
        return torch.cat(parts)

    def _teacher_width(self, layer: int) -> int | None:
        """Return the number of channels that one of the teacher's layers puts out."""
        module = self.teacher[f"model.{layer}"]
        if type(module).__name__ == "Upsample":
            return self._teacher_width(layer + module.f)
        last = self.teacher.get(f"model.{layer}.cv2.conv") or self.teacher.get(f"model.{layer}.conv")
        return last.out_channels if last is not None else None

    def _follow_block(self, name: str, ours: Any, theirs: Any) -> None:
        """Note what the inside of a block takes where evenly spaced channels would mix things up."""
        if isinstance(getattr(ours, "m", None), nn.ModuleList) and hasattr(ours, "cv2"):  # C2f and its kin
            # cv2 reads what cv1 made (two chunks of `c` channels in C2f, one in A2C2f), then one chunk per inner block
            chunk, width = (getattr(block, "c", block.cv1.conv.out_channels) for block in (ours, theirs))
            count = ours.cv2.conv.in_channels // chunk
            self.inputs[f"{name}.cv2.conv"] = torch.cat([evenly(chunk, width) + j * width for j in range(count)])
        elif hasattr(ours, "qkv") and ours.head_dim == theirs.head_dim:
            heads = evenly(ours.num_heads, theirs.num_heads)  # whole heads, or queries would become keys
            key_dim = getattr(ours, "key_dim", ours.head_dim)
            self.outputs[f"{name}.qkv.conv"] = _rows(heads, ours.head_dim + 2 * key_dim)
            values = _rows(heads, ours.head_dim)
            self.inputs[f"{name}.proj.conv"] = values
            self.outputs[f"{name}.pe.conv"] = self.inputs[f"{name}.pe.conv"] = values


def evenly(ours: int, theirs: int) -> Pick:
    """Return evenly spaced indices into the teacher's channels; all of them where there are no more."""
    return (torch.arange(ours) * theirs).div(max(ours, 1), rounding_mode="floor")


def _rows(heads: Pick, width: int) -> Pick:
    """Return the channels of whole heads."""
    return (heads[:, None] * width + torch.arange(width)).flatten()


def _as_list(value: int | list[int]) -> list[int]:
    """Return what a layer reads as a list."""
    return value if isinstance(value, list) else [value]
