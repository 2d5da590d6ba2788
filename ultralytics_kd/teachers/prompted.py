"""Teachers whose classes are text prompts: YOLO-World and YOLOE."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils import LOGGER

from .. import outputs
from ..errors import KDError, ModelError, first_line
from .base import Teacher
from .class_map import load_map, match_key
from .grid import GridTeacher

# Embeddings by text encoder and text: each text is embedded once, even if the teacher is opened again. A few kB each
_known: dict[tuple[str, str], Tensor] = {}


class PromptedTeacher(GridTeacher):
    """A detector whose classes are text prompts. It gets its prompts when its classes are matched.

    After that it is a plain YOLO model with these classes. Its text encoder is loaded for a moment, if at all.

    Attributes:
        prompts (dict[str, str]): Text by class name; empty until `ask_for` is called.
    """

    def __init__(self, original: Any, source: str, names: Mapping[int, str]):
        """Take a model that needs prompts, and the names of the texts that it was saved with."""
        super().__init__(original, source, outputs.prompted_layout(original).task, names)
        self.prompts: dict[str, str] = {}
        self._saved_names = list(names.values())
        self._embedded, self._encoder = False, outputs.text_encoder_of(original)
        self._identity = ""  # the fingerprint with the prompts

    def inspect(self) -> None:
        """Inspect the model's head, and its names once the prompts are embedded.

        Raises:
            KDError: If the head lost a branch, or a class has no name.
        """
        if self._embedded:
            super().inspect()
            return
        if fault := outputs.prompted_fault(self.original):
            raise ModelError(self.source, f"{fault}.")
        self.layout = replace(outputs.prompted_layout(self.original), task=self.task)
        self.maps = [self.layout.maps]
        self.channels = outputs.first_conv(self.original).in_channels

    def ask_for(self, prompts: Mapping[str, str]) -> None:
        """Set the prompts without embedding them; from then on `fingerprint` identifies the teacher's answers.

        Args:
            prompts (Mapping[str, str]): Text by class name.

        Raises:
            KDError: If other prompts are embedded already.
        """
        if self._embedded and dict(prompts) != self.prompts:
            raise ModelError(self.source, "has its words already: open it again to ask for others.")
        self.prompts, self.names = dict(prompts), dict(enumerate(prompts))

    def embed(self) -> None:
        """Embed the prompts, and make a plain model with these classes.

        Raises:
            KDError: If the text encoder cannot be loaded.
        """
        if self._embedded or not self.prompts:
            return
        self._identity = self.fingerprint()
        texts = self._own_texts()
        if texts is None:
            texts = outputs.head_texts(self.original, self._encode(list(self.prompts.values())))
        model: Any = deepcopy(self.original)
        outputs.fix_texts(model, texts)
        if self.task == "detect" and outputs.has_masks(model):
            outputs.drop_masks(model)
        model.names = dict(self.names)
        self.original, self._embedded = model, True
        self.inspect()

    def _own_texts(self) -> Tensor | None:
        """Return the embeddings of the prompts if the model was saved with all of them, else None."""
        own = outputs.own_texts(self.original, len(self._saved_names))
        index = {match_key(name): i for i, name in enumerate(self._saved_names)}
        keys = [match_key(name) for name in self.prompts]
        return None if own is None or not all(k in index for k in keys) else own[[index[k] for k in keys]]

    def _encode(self, texts: list[str]) -> Tensor:
        """Return the embeddings of texts, shape (texts, d); the text encoder is loaded only for new texts."""
        encoder = self._encoder
        new = [text for text in dict.fromkeys(texts) if (encoder, text) not in _known]
        if new:
            LOGGER.info(f"teacher={self.source}: {encoder} embeds {len(new)} prompts...")
            try:
                vectors = outputs.encode_texts(self.original, new)
            except Exception as e:  # no network, a package or a file that is missing: each raises a different type
                raise ModelError(
                    self.source,
                    f"needs its text encoder ({encoder}) for the prompt '{new[0]}', and it cannot be loaded: "
                    f"{first_line(e).rstrip('.')}. Set the classes where it can be, with model.set_classes(...) and "
                    "model.save(FILE), and give that file.",
                ) from e
            _known.update({(encoder, text): vector for text, vector in zip(new, vectors)})
        return torch.stack([_known[encoder, text] for text in texts])

    def match(
        self, names: Mapping[int, str], spec: Any = "auto", keep: Iterable[int] | None = None, single_cls: bool = False
    ) -> None:
        """Ask for the student's class names, or for the names in a map, and match these classes with the student's.

        Raises:
            KDError: If a prompt is empty, the text encoder cannot be loaded, or the map has an unknown class.
        """
        if not self.prompts:
            give_prompts([self], names, spec)
        self.embed()
        super().match(names, spec, keep, single_cls)

    def fingerprint(self) -> str:
        """Return a hash of the given weights, the prompts, and the prompts' encoder or saved embeddings."""
        if self._embedded:
            return self._identity
        weights = super().fingerprint()
        if not self.prompts:
            return weights
        own = self._own_texts()
        encoder = self._encoder if own is None else own.numpy().tobytes().hex()
        parts = [weights, encoder, *(part for pair in self.prompts.items() for part in pair)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def as_detector(self) -> GridTeacher:
        """Turn a segmentation teacher into a detection teacher, in place, and return it."""
        self.task, self.layout = "detect", None
        return self

    def vectors(self) -> dict[tuple[str, str], Tensor]:
        """Return the embeddings of its prompts that a text encoder made, by text encoder and text."""
        keys = [(self._encoder, text) for text in self.prompts.values()]
        return {key: _known[key] for key in keys if key in _known}


def give_prompts(members: Sequence[Teacher], names: Mapping[int, str], spec: Any = "auto") -> list[PromptedTeacher]:
    """Ask prompted teachers for the classes that the student learns.

    Args:
        members (Sequence[Teacher]): All teachers of a run, prompted or not.
        names (Mapping[int, str]): Classes of the data set.
        spec (str | Mapping): The `kd_classes` argument. "auto" asks for the class names; a name with synonyms
            ("mug/cup") stands for the first one, as in Ultralytics. The keys of a map are prompts, except those that
            are classes of another teacher.

    Returns:
        (list[PromptedTeacher]): The prompted teachers.

    Raises:
        KDError: If a prompt is empty.
    """
    asked = [m for m in members if isinstance(m, PromptedTeacher)]
    if not asked:
        return []
    if isinstance(spec, str) and spec.lower() == "auto":
        prompts = {str(name): str(name).split("/", 1)[0].strip() for name in names.values()}
        whose = "data= has a class with an empty name"
    else:
        closed = {match_key(n) for m in members if m not in asked for n in m.names.values()}
        prompts = {str(name): str(name).strip() for name in load_map(spec) if match_key(name) not in closed}
        whose = "kd_classes has an empty prompt"
    if not all(prompts.values()):
        raise KDError(f"{whose}, and teacher={asked[0].source} looks for what its classes say: give it words.")
    for member in asked:
        member.ask_for(prompts)
    return asked


@dataclass(frozen=True)
class Words:
    """Prompts and their embeddings, for another process that opens the same teachers.

    Attributes:
        prompts (dict[str, str]): Text by class name.
        vectors (dict[tuple[str, str], Tensor]): Embeddings by text encoder and text.
    """

    prompts: dict[str, str]
    vectors: dict[tuple[str, str], Tensor]

    def give(self, members: Sequence[Teacher]) -> None:
        """Ask the prompted teachers among `members` for these prompts, and embed them."""
        remember(self.vectors)
        for member in members:
            if isinstance(member, PromptedTeacher):
                member.ask_for(self.prompts)
                member.embed()


def words_of(members: Sequence[Teacher]) -> Words | None:
    """Return the prompts, which all prompted teachers share, and their embeddings; None without a prompted teacher.

    Args:
        members (Sequence[Teacher]): Teachers, prompted or not.
    """
    asked = [m for m in members if isinstance(m, PromptedTeacher)]
    return Words(asked[0].prompts, {k: v for m in asked for k, v in m.vectors().items()}) if asked else None


def remember(vectors: Mapping[tuple[str, str], Tensor]) -> None:
    """Store embeddings of texts that a run was trained with, or that another process made.

    Args:
        vectors (Mapping): Embeddings by text encoder and text.
    """
    _known.update(vectors)
