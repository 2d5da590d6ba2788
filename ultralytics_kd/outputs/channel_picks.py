"""The teacher's channels that each of a student's convolutions takes (`kd_init`).

    Convolutions and BatchNorm: evenly spaced output channels, and the input channels that the layers before selected.
        Where the importance of channels is known, the most important ones instead (`channel_importance`).
    Concatenations: the channels of each source, at their positions in the teacher's concatenation.
    Split blocks (C2f, C3k2, A2C2f, C2PSA): channels of each chunk, never across chunks. The last chunk runs through the
        inner blocks, which add to it: all of them take the same channels.
    Attention: whole heads, chosen likewise. A head keeps its queries, keys and values together; single channels would
        turn queries into keys. `proj` and `pe` take the channels of the same heads. If the heads differ in width
        (`head_dim`), whole heads do not fit: `qkv`, `proj` and `pe` take evenly spaced channels, and queries and keys
        may mix.

Blocks are recognised by their types, and by the names that Ultralytics gives their parts: cv1, cv2, m, qkv, proj, pe.
Evenly spaced channels are the same in every layer. Important ones are taken only where all layers that read them or
add to them are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .channel_importance import Importance, foremost

Pick = Tensor  # indices of the teacher's channels that the student takes, in the student's order
READERS = {"Conv", "C2f", "C3k2", "A2C2f", "C2PSA", "SPPF"}  # layers that read their input with their first convolution
# Layers whose output is that of one convolution. Others put out the sum or the concatenation of several (C3, GhostConv,
# ADown), or are a user's own: their channels are evenly spaced
LAST = {
    **dict.fromkeys(("Conv", "DWConv"), "conv"),
    **dict.fromkeys(("C2", "C2f", "C3k2", "A2C2f", "C2fAttn", "C2fCIB", "C2PSA", "C2fPSA", "PSA"), "cv2.conv"),
    **dict.fromkeys(("SPP", "SPPF", "SCDown", "Bottleneck"), "cv2.conv"),
}
TOWERS = {"cv2", "cv3", "cv4"}  # parts of a head, each with a tower of convolutions for each level
ENDS = {"Bottleneck": "cv2.conv", "C3k": "cv3.conv", "PSABlock": "ffn.1.conv"}  # the last convolution of inner blocks
FED = {"cv4_kpts", "cv4_sigma", "flow_model", "dfl"}  # parts of a head that read another part


class Picks:
    """The teacher's channels that each of the student's convolutions takes.

    Attributes:
        student (dict[str, nn.Module]): The student's modules by name.
        teacher (dict[str, nn.Module]): The teacher's modules by name.
        inputs (dict[str, Tensor]): Input channels by convolution, where they are not evenly spaced.
        outputs (dict[str, Tensor]): Output channels by convolution, where they are not evenly spaced.
        chains (dict[str, Tensor]): Channels that run through the inner blocks, by split block.
    """

    def __init__(self, student: Any, teacher: Any, importance: Mapping[str, Importance] | None = None):
        """Follow the layers of both models, then the inside of each block.

        Args:
            student (nn.Module): Ultralytics model.
            teacher (nn.Module): Ultralytics model of the same architecture.
            importance (Mapping[str, Importance], optional): How much each output channel matters, by the name of the
                teacher's convolution, as `measure_importance` returns it.
        """
        self.student = dict(student.named_modules())
        self.teacher: dict[str, Any] = dict(teacher.named_modules())
        self.importance = importance or {}
        self.inputs: dict[str, Pick] = {}
        self.outputs: dict[str, Pick] = {}
        self.chains: dict[str, Pick] = {}
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

    def output(self, name: str) -> Pick | None:
        """Return the output channels of a layer: those of its last convolution."""
        last = self._last(name)
        return self.of(last)[0] if last else None

    def _last(self, name: str) -> str:
        """Return the name of a layer's last convolution; empty if it is not known."""
        last = f"{name}.{LAST.get(type(self.student[name]).__name__)}"
        return last if isinstance(self.student.get(last), nn.Conv2d) and last in self.teacher else ""

    def _foremost(self, names: Sequence[str], count: int, total: int, start: int = 0) -> Pick:
        """Return the most important of the channels that some of the teacher's convolutions share.

        Args:
            names (Sequence[str]): The convolutions.
            count (int): Number of channels that the student has.
            total (int): Number of channels that the teacher has.
            start (int): Index of the first channel in the first convolution; 0 in the others.

        Returns:
            (Tensor): Indices in rising order; evenly spaced if the importance is not known, or the student has more.
        """
        if count > total or not all(name in self.importance for name in names):
            return evenly(count, total)
        shared = self.importance[names[0]].part(start, total)
        for name in names[1:]:
            shared += self.importance[name]
        return foremost(shared, count)

    # Layers -----------------------------------------------------------------------------------------------------------
    def _follow_layers(self, student: Any) -> None:
        """Choose the output channels of each layer, and set the input channels of those that read it."""
        free = _free_layers(student) if self.importance else set()
        layer_picks: list[Pick | None] = []
        for i, layer in enumerate(student.model):
            name = f"model.{i}"
            indices = _sources(layer, i)
            sources = [layer_picks[f] if i else None for f in indices]
            if type(layer).__name__ == "Concat":
                layer_picks.append(self._concatenated(sources, indices))
            elif not any(True for _ in layer.parameters()):
                layer_picks.append(sources[0])
            else:
                self._enter(name, layer, sources)
                layer_picks.append(self._leave(name, layer, sources[0], i in free))

    def _enter(self, name: str, layer: Any, sources: Sequence[Pick | None]) -> None:
        """Set the input channels of the convolutions that read what a layer reads."""
        if isinstance(getattr(layer, "cv3", None), nn.ModuleList):
            for part, towers in layer.named_children():
                if part.removeprefix("one2one_") in TOWERS and isinstance(towers, nn.ModuleList):
                    for level, (tower, source) in enumerate(zip(towers, sources)):
                        self._follow_tower(f"{name}.{part}.{level}", tower, source)
            return
        for entry in (f"{name}.cv1.conv", f"{name}.conv", f"{name}.conv.conv"):
            if isinstance(self.student.get(entry), nn.Conv2d) and sources[0] is not None:
                self.inputs[entry] = sources[0]
                return

    def _leave(self, name: str, layer: Any, source: Pick | None, free: bool) -> Pick | None:
        """Return the output channels of a layer, and set them if they are not evenly spaced."""
        last = self._last(name)
        if not last:
            return None
        count, total = self.student[last].out_channels, self.teacher[last].out_channels
        pick = evenly(count, total)
        if _adds_its_input(layer) and source is not None:
            pick = source
        elif free:
            pick = self._foremost([last], count, total)
        self.outputs[last] = pick
        return pick

    def _follow_tower(self, name: str, tower: nn.Module, source: Pick | None) -> None:
        """Set the channels of a tower of a head, except the output channels of its last convolution.

        Args:
            name (str): Name of the tower.
            tower (nn.Module): Its convolutions run one after the other; depthwise ones keep their channels.
            source (Tensor | None): Channels that it reads.
        """
        if source is None:
            return
        convs = {f"{name}.{n}".rstrip("."): m for n, m in tower.named_modules() if isinstance(m, nn.Conv2d)}
        for path, conv in convs.items():
            if path not in self.teacher:
                return
            self.inputs[path] = source
            if conv.groups > 1:
                self.outputs[path] = source
            elif path != next(reversed(convs)):
                source = self._foremost([path], conv.out_channels, self.teacher[path].out_channels)
                self.outputs[path] = source

    def _concatenated(self, sources: list[Pick | None], layers: list[int]) -> Pick | None:
        """Return the channels of a concatenation, at their positions in the teacher's concatenation."""
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

    # Blocks -----------------------------------------------------------------------------------------------------------
    def _follow_block(self, name: str, block: Any, source: Any) -> None:
        """Set the channels inside a block where evenly spaced ones would mix its chunks or attention heads."""
        kind = type(block).__name__
        if isinstance(getattr(block, "m", None), nn.ModuleList) and hasattr(block, "cv2"):  # C2f and its relatives
            # cv2 reads the chunks of cv1 (two of `c` channels in C2f, one in A2C2f), then one chunk per inner block
            width, its_width = (getattr(each, "c", each.cv1.conv.out_channels) for each in (block, source))
            self._follow_split(name, block, width, its_width, block.cv2.conv.in_channels // width)
        elif kind == "C2PSA":
            self._follow_split(name, block, block.c, source.c, 2)
        elif kind == "SPPF":
            path = f"{name}.cv1.conv"
            width, its_width = block.cv1.conv.out_channels, source.cv1.conv.out_channels
            pick = self.outputs[path] = self._foremost([path], width, its_width)
            pooled = range(block.cv2.conv.in_channels // width)
            self.inputs[f"{name}.cv2.conv"] = torch.cat([pick + i * its_width for i in pooled])
        elif hasattr(block, "qkv") and block.head_dim == source.head_dim:
            key_dim, path = getattr(block, "key_dim", block.head_dim), f"{name}.qkv.conv"
            heads = evenly(block.num_heads, source.num_heads)
            if path in self.importance:
                of_heads = self.importance[path].change.reshape(source.num_heads, -1).sum(1)
                heads = of_heads.topk(block.num_heads).indices.sort().values
            self.outputs[path] = _head_channels(heads, block.head_dim + 2 * key_dim)
            values = _head_channels(heads, block.head_dim)
            self.inputs[f"{name}.proj.conv"] = values
            self.outputs[f"{name}.pe.conv"] = self.inputs[f"{name}.pe.conv"] = values

    def _follow_split(self, name: str, block: Any, width: int, its_width: int, chunks: int) -> None:
        """Set the channels of a split block.

        Args:
            name (str): Its name.
            block (nn.Module): The student's block; `cv1` puts out chunks, the last of which the inner blocks read.
            width (int): Channels of a chunk.
            its_width (int): Channels of a chunk of the teacher's block.
            chunks (int): Number of chunks that `cv2` reads.
        """
        first = f"{name}.cv1.conv"
        split = block.cv1.conv.out_channels // width
        inner = [f"{name}.m.{i}" for i in range(len(block.m))]
        ends = [_end(path, self.teacher.get(path)) for path in inner]
        chain = evenly(width, its_width)
        if all(ends):  # the blocks add to the chain, so its channels matter at the end of each
            chain = self._foremost([first, *ends], width, its_width, (split - 1) * its_width)
        side = self._foremost([first], width, its_width)
        picks = [side] * (split - 1) + [chain] * (chunks - split + 1)
        placed = [pick + i * its_width for i, pick in enumerate(picks)]
        self.chains[name], self.outputs[first] = chain, torch.cat(placed[:split])
        self.inputs[f"{name}.cv2.conv"] = torch.cat(placed)
        for path in inner if all(ends) else ():
            self._follow_inner(path, chain)

    def _follow_inner(self, name: str, chain: Pick) -> None:
        """Set the channels of an inner block that reads the channels of a chain, and puts out the same channels."""
        block = self.student[name]
        if not self.alike(name):  # `block_counterparts` says what it is fitted to
            return
        kind = type(block).__name__
        if kind == "Sequential":
            for i in range(len(block)):
                self._follow_inner(f"{name}.{i}", chain)
        elif kind == "Bottleneck":
            self._connect(chain, f"{name}.cv1.conv", f"{name}.cv2.conv", chain)
        elif kind == "PSABlock":
            self.inputs[f"{name}.attn.qkv.conv"] = self.outputs[f"{name}.attn.proj.conv"] = chain
            self._connect(chain, f"{name}.ffn.0.conv", f"{name}.ffn.1.conv", chain)
        elif kind == "C3k":
            entry, side, last = (f"{name}.{part}.conv" for part in ("cv1", "cv2", "cv3"))
            inner = [f"{name}.m.{i}" for i in range(len(block.m))]
            width, its_width = block.cv1.conv.out_channels, self.teacher[entry].out_channels
            within = self._foremost([entry, *(f"{path}.cv2.conv" for path in inner)], width, its_width)
            beside = self._foremost([side], width, its_width)
            self.inputs[entry] = self.inputs[side] = self.outputs[last] = chain
            self.outputs[entry], self.outputs[side] = within, beside
            self.inputs[last] = torch.cat((within, beside + its_width))
            for path in inner:
                self._connect(within, f"{path}.cv1.conv", f"{path}.cv2.conv", within)

    def _connect(self, source: Pick, first: str, second: str, end: Pick) -> None:
        """Set the channels of two convolutions that run one after the other."""
        hidden = self._foremost([first], self.student[first].out_channels, self.teacher[first].out_channels)
        self.inputs[first], self.outputs[first] = source, hidden
        self.inputs[second], self.outputs[second] = hidden, end


def evenly(student: int, teacher: int) -> Pick:
    """Return evenly spaced indices into the teacher's channels, as many as the student has."""
    return (torch.arange(student) * teacher).div(max(student, 1), rounding_mode="floor")


def _end(name: str, block: Any) -> str:
    """Return the name of the last convolution of a teacher's inner block; empty if the block is not known.

    Args:
        name (str): Name of the block.
        block (nn.Module | None): The block.
    """
    if isinstance(block, nn.Sequential):
        ends = [_end(f"{name}.{i}", part) for i, part in enumerate(block)]
        return ends[-1] if ends and all(ends) else ""
    kind = type(block).__name__
    convs = {path: m for path, m in block.named_modules() if isinstance(m, nn.Conv2d)} if kind in ENDS else {}
    grouped = any(conv.groups > 1 for path, conv in convs.items() if ".pe." not in path)
    return f"{name}.{ENDS[kind]}" if convs and not grouped else ""


def _head_channels(heads: Pick, width: int) -> Pick:
    """Return the channels of whole attention heads, each `width` channels wide."""
    return (heads[:, None] * width + torch.arange(width)).flatten()


def _sources(layer: Any, index: int) -> list[int]:
    """Return the indices of the layers that a layer reads."""
    sources = layer.f if isinstance(layer.f, list) else [layer.f]
    return [f if f >= 0 else index + f for f in sources]


def _adds_its_input(layer: Any) -> bool:
    """Return whether a layer adds what it reads to what it puts out, so that both have the same channels."""
    return bool(getattr(layer, "add", False)) or getattr(layer, "gamma", None) is not None


def _free_layers(model: Any) -> set[int]:
    """Return the layers whose output channels can be chosen, because all their readers are of a known kind."""
    readers: dict[int, set[int]] = {i: set() for i in range(len(model.model))}
    for i in reversed(range(len(model.model))):  # a layer that passes channels on shares its readers with its sources
        layer = model.model[i]
        passes = _adds_its_input(layer) or not any(True for _ in layer.parameters())
        for source in _sources(layer, i) if i else ():
            readers[source] |= {i} | (readers[i] if passes else set())
    return {i for i, found in readers.items() if all(_reads_in_a_known_way(model.model[j]) for j in found)}


def _reads_in_a_known_way(layer: Any) -> bool:
    """Return whether the channels that a layer reads can be chosen."""
    if not any(True for _ in layer.parameters()):
        return True
    if isinstance(getattr(layer, "cv3", None), nn.ModuleList):  # a head
        parts = {
            n.removeprefix("one2one_") for n, part in layer.named_children() if any(True for _ in part.parameters())
        }
        return parts <= TOWERS | FED
    kind = type(layer).__name__
    return kind == "Classify" or (kind in READERS and (kind != "Conv" or layer.conv.groups == 1))
