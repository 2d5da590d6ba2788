"""Weight fitting: each layer of a student is refitted to the activations of its teacher, layer by layer.

Weight selection (`weight_selection`) takes channels of the teacher's layers. A student that sums over fewer inputs
then computes other values, and the error grows from layer to layer. Here each convolution, in the order in which they
run, is set by ridge regression: from the student's own inputs to the teacher's activations at the channels that it
takes. The penalty pulls towards the selected weights. `block_counterparts` says what stands in for a layer that the
teacher does not have. BatchNorm gets the statistics of the fit. No labels are needed.

Layer by layer reconstruction is known from channel pruning (He et al., ICCV 2017, https://arxiv.org/abs/1707.06168).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .weight_origin import is_trained

POSITIONS = 12_000  # positions over all images that enter the regression of a layer
PENALTY = 0.01  # of the ridge regression, as a share of the mean variance of the inputs
PIXELS = 2**18  # pixels of the images that run at a time
SMALL = 1e-12  # smallest variance


class Target(NamedTuple):
    """What a convolution of the student is fitted to.

    Attributes:
        channels (Tensor): The student's output channels that are set.
        source (str): Name of the teacher's convolution; if it has a BatchNorm, the BatchNorm's output counts.
        taken (Tensor): The teacher's channels, one for each of `channels`.
    """

    channels: Tensor
    source: str
    taken: Tensor


@torch.no_grad()
def fit_weights(
    student: Any,
    teacher: Any,
    images: Tensor,
    wanted: Mapping[str, Target],
) -> dict[str, float]:
    """Refit a student's convolutions to its teacher's activations.

    Args:
        student (nn.Module): Ultralytics model whose weights were selected; changed in place.
        teacher (nn.Module): The model that they were selected from, on the same device; it is not changed.
        images (Tensor): Training images as the student sees them, shape (N, C, H, W).
        wanted (Mapping[str, Target]): Targets by the name of each convolution that is fitted. A convolution whose
            source has another name has no selected weights, and its fit is pulled towards zero.

    Returns:
        (dict[str, float]): Share of the variance of the teacher's activations that each convolution explains (R2).
    """
    with evaluating(student), evaluating(teacher):
        chunks = list(images.split(max(1, PIXELS // (images.shape[2] * images.shape[3]))))
        order = [name for name in _order(student, chunks[0]) if name in wanted]
        targets = _Targets(teacher, chunks, {name: wanted[name] for name in order})
        layers = _Layers(student, chunks)
        fits: dict[str, float] = {}
        for index in range(len(student.model)):
            for name in (each for each in order if int(each.split(".")[1]) == index and each in targets):
                conv, norm = student.get_submodule(name), _norm_behind(student, name)
                places = targets.places[name]
                inputs = [_columns(conv, x, drawn) for x, drawn in zip(layers.inputs(conv, index), places)]
                target = targets.pop(name, conv.groups)
                begins = wanted[name].source == name
                fit = _Fit(conv, norm, wanted[name].channels, torch.cat(inputs, 1), target, begins)
                fit.write()
                fits[name] = fit.explained
            layers.advance(index)
    return fits


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode within a block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _norm_behind(model: nn.Module, name: str) -> Any:
    """Return the BatchNorm behind a convolution in Ultralytics' `Conv`, None if there is none."""
    return getattr(model.get_submodule(name.rpartition(".")[0]), "bn", None) if name.endswith(".conv") else None


def _order(model: nn.Module, images: Tensor) -> list[str]:
    """Return the names of a model's convolutions in the order in which they run, without those that run twice."""
    names: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: names.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in names if names.count(name) == 1]


class _Targets:
    """Activations of the teacher at random places: what each convolution of the student is fitted to.

    Attributes:
        places (dict[str, list[Tensor]]): Flat places of each chunk's feature maps, (images, places), by convolution.
    """

    def __init__(self, teacher: Any, chunks: list[Tensor], wanted: Mapping[str, Target]):
        """Run the teacher once.

        Args:
            teacher (nn.Module): The teacher.
            chunks (list[Tensor]): Images, each of shape (n, C, H, W).
            wanted (Mapping[str, Target]): Targets by the student's convolutions.
        """
        self.places: dict[str, list[Tensor]] = {name: [] for name in wanted}
        self._values: dict[str, list[Tensor]] = {name: [] for name in wanted}
        generator, most = torch.Generator().manual_seed(0), POSITIONS // sum(len(chunk) for chunk in chunks)

        def keep(name: str, output: Tensor) -> None:
            maps = output[:, wanted[name].taken.to(output.device)].flatten(2)
            count = max(1, min(maps.shape[2], most))
            drawn = [torch.randperm(maps.shape[2], generator=generator)[:count] for _ in range(len(maps))]
            places = torch.stack(drawn).to(maps.device)
            self.places[name].append(places)
            self._values[name].append(maps.gather(2, places[:, None].expand(-1, maps.shape[1], -1)))

        hooks = [
            (_norm_behind(teacher, target.source) or teacher.get_submodule(target.source)).register_forward_hook(
                lambda _, __, output, name=name: keep(name, output)
            )
            for name, target in wanted.items()
        ]
        try:
            for chunk in chunks:
                teacher(chunk)
        finally:
            for hook in hooks:
                hook.remove()

        self._runs = len(chunks)

    def __contains__(self, name: str) -> bool:
        """Return whether the teacher ran a convolution once in each forward pass, as the student did."""
        return len(self._values[name]) == self._runs

    def pop(self, name: str, groups: int) -> Tensor:
        """Return the activations for a convolution, (groups, samples, channels of a group), and free their memory."""
        values = [_grouped(each, groups) for each in self._values.pop(name)]
        return torch.cat(values, 1)


class _Layers:
    """Runs a student layer by layer, so that a convolution needs only the layer that it is in."""

    def __init__(self, student: Any, chunks: list[Tensor]):
        """Start before the first layer."""
        self.layers, self.chunks = list(student.model), chunks
        self._outputs: dict[int, list[Any]] = {}

    def inputs(self, conv: nn.Module, index: int) -> Iterator[Tensor]:
        """Yield the input of a convolution of a layer for each chunk of images."""
        for chunk in range(len(self.chunks)):
            seen: list[Tensor] = []

            def stop(_: Any, inputs: tuple[Tensor, ...], seen: list[Tensor] = seen) -> None:
                seen.append(inputs[0])
                raise _Reached

            hook = conv.register_forward_pre_hook(stop)
            try:
                self.layers[index](self._sources(index, chunk))
            except _Reached:
                pass
            finally:
                hook.remove()
            yield seen[0]

    def advance(self, index: int) -> None:
        """Run a layer whose convolutions are fitted, and free the maps that no later layer reads."""
        if index == len(self.layers) - 1:
            return
        self._outputs[index] = [self.layers[index](self._sources(index, c)) for c in range(len(self.chunks))]
        needed = {source for i in range(index + 1, len(self.layers)) for source in self._indices(i)} | {index}
        for unused in self._outputs.keys() - needed:
            del self._outputs[unused]

    def _indices(self, index: int) -> list[int]:
        """Return the indices of the layers that a layer reads; -1 stands for the images."""
        sources = self.layers[index].f
        return [f if f >= 0 else index + f for f in (sources if isinstance(sources, list) else [sources])]

    def _sources(self, index: int, chunk: int) -> Any:
        """Return what a layer reads, of one chunk of images."""
        sources = [self.chunks[chunk] if i < 0 else self._outputs[i][chunk] for i in self._indices(index)]
        return sources if isinstance(self.layers[index].f, list) else sources[0]


class _Reached(Exception):
    """A forward pass has reached the convolution whose input is wanted."""


def _columns(conv: nn.Module, inputs: Tensor, places: Tensor) -> Tensor:
    """Return what a convolution multiplies its weights with, (groups, samples, weights of a channel)."""
    module: Any = conv
    patches = F.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
    patches = patches.gather(2, places[:, None].expand(-1, patches.shape[1], -1))
    return _grouped(patches, module.groups)


def _grouped(values: Tensor, groups: int) -> Tensor:
    """Return values of shape (images, groups * n, places) as (groups, images * places, n)."""
    images, total, places = values.shape
    return (
        values.reshape(images, groups, total // groups, places).permute(1, 0, 3, 2).reshape(groups, -1, total // groups)
    )


class _Fit:
    """The ridge regression of one convolution.

    Attributes:
        explained (float): Share of the variance of the target that is explained, mean over channels.
    """

    def __init__(self, conv: Any, norm: Any, channels: Tensor, inputs: Tensor, target: Tensor, begins: bool = True):
        """Solve the regression: sums over samples in the inputs' precision, all else in float64.

        Args:
            conv (nn.Conv2d): The student's convolution.
            norm (nn.BatchNorm2d | None): The BatchNorm behind it.
            channels (Tensor): The output channels that are set, all of them if there are groups.
            inputs (Tensor): What the weights are multiplied with, (groups, samples, d).
            target (Tensor): The teacher's activations behind its norm, (groups, samples, outputs of a group).
            begins (bool): Whether the convolution has selected weights to begin with.
        """
        self.conv, self.norm, self.channels = conv, norm, channels
        groups, samples, size = inputs.shape
        self.input_mean, self.mean = inputs.mean(1).double(), target.mean(1).double()
        inputs, target = inputs - inputs.mean(1, keepdim=True), target - target.mean(1, keepdim=True)
        gram = (inputs.transpose(1, 2) @ inputs).double() / samples
        cross = (inputs.transpose(1, 2) @ target).double() / samples
        variance = target.square().mean(1).double().clamp(min=SMALL)
        prior = self._prior() if begins else torch.zeros_like(conv.weight[channels]).double().flatten(1)
        prior = prior.reshape(groups, -1, size).transpose(1, 2)
        scale = PENALTY * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-9)
        ridge = scale[:, None, None] * torch.eye(size, dtype=gram.dtype, device=gram.device)
        self.weight = prior + torch.linalg.solve(gram + ridge, cross - gram @ prior)
        self.variance = torch.einsum("gdo,gde,geo->go", self.weight, gram, self.weight).clamp(min=SMALL)
        error = variance - 2 * (self.weight * cross).sum(1) + self.variance
        self.explained = float((1 - error / variance).mean())

    def _prior(self) -> Tensor:
        """Return the selected weights with their norm's scale, shape (outputs, d); 0 if they are random."""
        weight = self.conv.weight[self.channels].double().flatten(1)
        if self.norm is None:
            return weight
        if not is_trained(self.norm):
            return torch.zeros_like(weight)
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        return weight * scale[self.channels].double()[:, None]

    def write(self) -> None:
        """Set weights, bias and norm."""
        conv, norm, channels = self.conv, self.norm, self.channels
        conv.weight[channels] = self.weight.transpose(1, 2).reshape(-1, *conv.weight.shape[1:]).to(conv.weight.dtype)
        output_mean = (self.weight * self.input_mean[:, :, None]).sum(1).flatten()
        if norm is not None:
            variance = self.variance.flatten()
            norm.running_mean[channels] = output_mean.to(norm.running_mean.dtype)
            norm.running_var[channels] = variance.to(norm.running_var.dtype)
            norm.weight[channels] = (variance + norm.eps).sqrt().to(norm.weight.dtype)
            norm.bias[channels] = self.mean.flatten().to(norm.bias.dtype)
        elif conv.bias is not None:
            conv.bias[channels] = (self.mean.flatten() - output_mean).to(conv.bias.dtype)
