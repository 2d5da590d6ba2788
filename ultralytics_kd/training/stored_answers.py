"""Opens the stored answers that a training reads, makes them first with `kd_cache=True`, and checks that they fit."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils import LOGGER, RANK

from ..cache.build import answered_size, build_cache
from ..cache.options import CACHE_ONLY, check_options
from ..cache.store import Store
from ..config import as_list
from ..distillation.keeping import SEEN
from ..distillation.pseudo_boxes import check_stored_detections, lowest_confidence
from ..errors import KDError
from ..teachers import Teacher
from ..teachers.prompted import PromptedTeacher
from .run.random_streams import streams_kept
from .run.teacher_source import TeacherSource


def open_store(args: Any, source: TeacherSource, teacher: Teacher, channels: int, names: Mapping[int, str]) -> Store:
    """Return the stored answers of `kd_cache`; its path in `args` becomes absolute.

    Args:
        args (Namespace): Arguments of the training.
        source (TeacherSource): Where the teacher came from.
        teacher (Teacher): The opened teacher.
        channels (int): Channels of the data's images.
        names (Mapping[int, str]): The student's classes, which prompted teachers look for.

    Raises:
        KDError: If they do not fit teacher, data or arguments.
    """
    if args.kd_cache is True:
        _make(args, source, names)
    store = Store(args.kd_cache)
    _check_teacher(args, store, teacher)
    if args.kd_teacher_imgsz is not None:
        _check_size(args, store, teacher)
    _check_names(args, store, teacher)
    held = store.manifest()
    _check_detections(args, held.conf, held.iou, held.topk)
    if held.channels != channels:
        raise KDError(
            f"kd_cache={args.kd_cache} holds answers to images of {held.channels} channel(s), and those of the data "
            f"have {channels}: give another folder, or kd_cache=True."
        )
    args.kd_cache = str(Path(args.kd_cache).resolve())
    return store


def _make(args: Any, source: TeacherSource, names: Mapping[int, str]) -> None:
    """Let the teacher answer all images, unless it has, and set `kd_cache` to the folder of its answers."""
    _check_detections(args, *(CACHE_ONLY[f"kd_cache_{name}"] for name in ("conf", "iou", "topk")))
    sources = as_list(source.value if source.in_memory else args.teacher)
    # There is no process group yet. The first process to lock the folder answers all images
    with streams_kept(torch.device("cpu")):  # augmentation draws as in a run without a cache
        made = build_cache(args, sources, check_options(CACHE_ONLY), names=names)
    args.kd_cache = str(made.folder)


def _check_teacher(args: Any, store: Store, teacher: Teacher) -> None:
    """Raise if the answers are of other weights, and warn if they are of more teachers than the run has."""
    stored = {t["sha256"]: t["name"] for t in store.manifest().teachers}
    own = {member.fingerprint() for member in teacher.members}
    if own < stored.keys() and RANK in {-1, 0}:
        LOGGER.warning(
            f"kd_cache={args.kd_cache} holds the joint answers of {' and '.join(stored.values())}: the student learns "
            f"these, and not those of teacher={teacher.source} alone."
        )
    if not own <= stored.keys():
        raise KDError(
            f"kd_cache={args.kd_cache} holds answers of other weights ({', '.join(stored.values())}), not of "
            f"teacher={teacher.source}: name the teacher that it was made with."
        )


def _check_names(args: Any, store: Store, teacher: Teacher) -> None:
    """Raise if the teacher's class names have changed since it answered; those of a prompted one are its prompts."""
    held, first = store.manifest(), teacher.members[0]
    if len(held.teachers) > 1 or isinstance(first, PromptedTeacher):
        return
    pairs = zip_longest(held.names.values(), first.names.values())
    differ = next((pair for pair in pairs if pair[0] != pair[1]), None)
    if differ:
        raise KDError(
            f"kd_cache={args.kd_cache} was made when teacher={first.source} had other class names ('{differ[0]}', now "
            f"'{differ[1]}'): make the answers again in another folder."
        )


def _check_size(args: Any, store: Store, teacher: Teacher) -> None:
    """Raise unless the teacher answered at the size that `kd_teacher_imgsz` asks for."""
    stored, asked = store.manifest().imgsz, answered_size(args, teacher.members)
    if stored != asked:
        raise KDError(
            f"kd_cache={args.kd_cache} holds answers to images of {stored} px, and kd_teacher_imgsz="
            f"{args.kd_teacher_imgsz} asks for {asked} px: drop kd_teacher_imgsz, or give kd_cache=True."
        )


def _check_detections(args: Any, conf: float, iou: float, most: int) -> None:
    """Raise if answers with these limits lack detections that pseudo-boxes or kept classes need."""
    given = args.kd_unlabeled_boxes
    if given is not None:
        name = f"kd_unlabeled_boxes={given}"
        check_stored_detections(name, lowest_confidence(given), args.kd_cache, conf, iou, most)
    if args.kd_keep:
        check_stored_detections(f"kd_keep={args.kd_keep}", SEEN, args.kd_cache, conf, iou, most)
