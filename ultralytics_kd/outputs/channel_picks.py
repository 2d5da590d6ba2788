"""The teacher's channels that each of a student's convolutions takes (`kd_init`).

    Convolutions and BatchNorm: evenly spaced output channels, and the input channels that its sources selected.
    Concatenations: the channels of each source, at their positions in the teacher's concatenation.
    Split blocks (C2f, C3k2, A2C2f): evenly spaced channels of each chunk, never across chunks.
    Attention: whole heads, evenly spaced. A head keeps its queries, keys and values together; single channels would
        turn queries into keys. `proj` and `pe` take the channels of the same heads. If the heads differ in width
        (`head_dim`), whole heads do not fit: `qkv`, `proj` and `pe` take evenly spaced channels, and queries and keys
        may mix.

Blocks are recognised by the names that Ultralytics gives their parts: cv1, cv2, m, qkv, proj, pe.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Pick = Tensor  # indices of the teacher's channels that the student takes, in the student's order


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
