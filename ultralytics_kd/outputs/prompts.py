"""YOLO-World and YOLOE, whose classes are texts: with fixed texts they become plain YOLO models.

YOLOE scores a class by a product of an anchor point's features with the text's vector. With fixed texts this is a 1x1
convolution, and the head is a plain `Detect` or `Segment`. YOLO-World also normalises the features, and reads the texts
in its neck: its score towers end in a module that holds the texts, and the model keeps them for its neck.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics.nn import tasks
from ultralytics.nn.modules import head as head_module
from ultralytics.nn.modules.head import Detect, Segment, WorldDetect, YOLOEDetect, YOLOESegment

from .grid import Layout
from .heads import branch_fault, find_head, layout_of

# Heads of fixed texts by heads that need prompts; a release may lack some
PLAIN = {"YOLOEDetect": "Detect", "YOLOESegment": "Segment", "YOLOESegment26": "Segment26", "WorldDetect": "Detect"}
PROMPTED = {getattr(head_module, name): name for name in PLAIN if hasattr(head_module, name)}
UNIT = 0.1  # how far the length of a text's vector may be from 1; Ultralytics' placeholders are zeros or random numbers


def takes_prompts(model: nn.Module) -> bool:
    """Return whether a model ends in a head of YOLO-World or YOLOE."""
    return type(find_head(model)) in PROMPTED


def is_fixed(model: nn.Module) -> bool:
    """Return whether a prompted model's texts are part of its weights, so that it takes no others."""
    head = find_head(model)
    return isinstance(head, YOLOEDetect) and (head.is_fused or hasattr(head, "lrpc"))


def text_encoder_of(model: Any) -> str:
    """Return the name of the text encoder that a prompted model was trained with, as Ultralytics names it."""
    return "clip:ViT-B/32" if _is_world(model) else getattr(model, "text_model", "mobileclip:blt")


def prompted_layout(model: nn.Module) -> Layout:
    """Return the layout of a head that needs prompts; its number of classes means nothing before `fix_texts`."""
    head = find_head(model)
    return layout_of(head, "segment" if isinstance(head, YOLOESegment) else "detect")


def prompted_fault(model: nn.Module) -> str | None:
    """Return why a prompted model cannot teach, as the rest of a sentence about it; None if it can."""
    return branch_fault(find_head(model))


def encode_texts(model: Any, texts: list[str]) -> Tensor:
    """Return a prompted model's embeddings of texts; Ultralytics loads the text encoder, which is freed afterwards.

    Args:
        model (nn.Module): The model.
        texts (list[str]): The texts.

    Returns:
        (Tensor): Vectors of length 1, shape (texts, d), on the CPU.
    """
    own = {} if _is_world(model) else {"without_reprta": True}
    saved = getattr(model, "clip_model", None) is not None  # in files of some releases
    vectors = model.get_text_pe(texts, cache_clip_model=saved, **own)
    return vectors[0].detach().float().cpu().clone()  # the clone is not an inference tensor


def own_texts(model: Any, count: int) -> Tensor | None:
    """Return the vectors of the texts that were set before the model was saved, None if there are none.

    Args:
        model (nn.Module): The model.
        count (int): Number of its class names.

    Returns:
        (Tensor | None): Vectors as its head takes them, shape (count, d).
    """
    vectors = getattr(model, "txt_feats" if _is_world(model) else "pe", None)
    if not isinstance(vectors, Tensor) or vectors.ndim != 3 or vectors.shape[:2] != (1, count):
        return None
    vectors = vectors[0].detach().float().cpu().clone()
    return vectors if bool(((vectors.norm(dim=1) - 1).abs() < UNIT).all()) else None


def head_texts(model: Any, encoded: Tensor) -> Tensor:
    """Return vectors of texts as the head takes them, from those of the text encoder, shape (texts, d)."""
    with torch.no_grad():
        return encoded if _is_world(model) else find_head(model).get_tpe(encoded[None])[0]


def drop_text_encoder(model: Any) -> None:
    """Take the text encoder out of a model that was saved with it."""
    if getattr(model, "clip_model", None) is not None:
        model.clip_model = None


def fix_texts(model: Any, texts: Tensor | None = None) -> None:
    """Turn a prompted model into a plain one, in place.

    Args:
        model (nn.Module): A float32 model of YOLO-World or YOLOE in eval mode.
        texts (Tensor, optional): Vectors of its classes as its head takes them, shape (nc, d); None if they are part of
            its weights.
    """
    drop_text_encoder(model)
    head = find_head(model)
    with torch.no_grad():
        if _is_world(model):
            assert texts is not None
            _fix_world(model, head, texts)
        else:
            _fix_yoloe(model, head, texts)
    head.__class__ = getattr(head_module, PLAIN[type(head).__name__])
    head.no = head.nc + 4 * head.reg_max
    model.yaml = {**model.yaml, "nc": head.nc}


def drop_masks(model: Any) -> None:
    """Turn an instance segmentation model into a detector, in place.

    Args:
        model (SegmentationModel): The model.
    """
    head = find_head(model)
    for name in [name for name in head._modules if name.removeprefix("one2one_") in {"proto", "cv4"}]:
        delattr(head, name)
    head.__class__, model.__class__, model.task = Detect, tasks.DetectionModel, "detect"


def has_masks(model: nn.Module) -> bool:
    """Return whether a model ends in a head for instance segmentation from which `drop_masks` makes a detector."""
    return isinstance(find_head(model), Segment)


def _is_world(model: nn.Module) -> bool:
    """Return whether a prompted model is YOLO-World."""
    return isinstance(find_head(model), WorldDetect)


def _fix_world(model: Any, head: Any, texts: Tensor) -> None:
    """Let the score towers of YOLO-World's head hold the texts, and its neck read them."""
    for i, (tower, contrast) in enumerate(zip(head.cv3, head.cv4)):
        head.cv3[i] = nn.Sequential(*tower, TextScores(contrast, texts))
    del head.cv4
    head.nc = len(texts)
    vars(model).pop("txt_feats", None)
    model.register_buffer("txt_feats", texts[None].clone())  # a buffer goes to the model's device with it


def _fix_yoloe(model: Any, head: Any, texts: Tensor | None) -> None:
    """Put the texts into the last convolutions of YOLOE's score towers, and drop what only prompts need."""
    if hasattr(head, "lrpc"):
        _close_vocabulary(head)
    elif texts is not None:
        head.fuse(F.normalize(texts, dim=-1)[None])
    head.nc = next(t for t in (head.cv3, getattr(head, "one2one_cv3", None)) if t is not None)[0][-1].out_channels
    masks = isinstance(head, YOLOESegment)
    for name, module in list(head._modules.items()):
        prefix = "one2one_" if name.startswith("one2one_") else ""
        part = name.removeprefix(prefix)
        if part in {"cv4", "reprta", "savpe"}:
            delattr(head, name)
        elif part == "cv5":  # the towers of mask coefficients, which plain heads name cv4
            delattr(head, name)
            setattr(head, f"{prefix}cv4", module)
    model.__class__ = tasks.SegmentationModel if masks else tasks.DetectionModel


def _close_vocabulary(head: Any) -> None:
    """Put the last layers of a prompt-free YOLOE back into its towers, without the filter that saves time."""
    for prefix in ("", "one2one_"):
        lrpc = getattr(head, f"{prefix}lrpc", None)
        if lrpc is None:
            continue
        for boxes, scores, last in zip(getattr(head, f"{prefix}cv2"), getattr(head, f"{prefix}cv3"), lrpc):
            boxes.append(last.loc)
            scores.append(_convolution(last.vocab))
        delattr(head, f"{prefix}lrpc")


def _convolution(layer: Any) -> nn.Conv2d:
    """Return a linear layer as a 1x1 convolution; a convolution as it is."""
    if isinstance(layer, nn.Conv2d):
        return layer
    conv = nn.Conv2d(layer.in_features, layer.out_features, 1)
    conv.weight, conv.bias = nn.Parameter(layer.weight.data[:, :, None, None]), nn.Parameter(layer.bias.data)
    return conv


class TextScores(nn.Module):
    """The last layer of a score tower of YOLO-World, for fixed texts."""

    def __init__(self, contrast: nn.Module, texts: Tensor):
        """Take Ultralytics' contrastive layer, and the vectors of the texts, shape (nc, d)."""
        super().__init__()
        self.contrast = contrast
        self.register_buffer("texts", texts[None].clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, nc, H, W) from features (B, d, H, W)."""
        return self.contrast(x, self.texts)
