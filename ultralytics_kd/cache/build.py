"""Making a cache: find the images without an answer, collect the settings, and compute the answers."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset, convert_ndjson_to_yolo_if_needed, get_split_fraction
from ultralytics.utils import DEFAULT_CFG, LOGGER, TQDM, colorstr
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.patches import override_configs
from ultralytics.utils.torch_utils import select_device

from ..compat import versions
from ..config.arguments import as_list, parse_list
from ..config.checks import check_names, check_plain, check_values, whole_number
from ..config.label_free import lacks_training_images, with_train_entry
from ..config.registration import register_arguments
from ..config.teacher_size import check_scored_larger, check_teacher_size, rounded_size, teacher_size
from ..errors import KDError
from ..files import output_folder
from ..image_files import find_unlabeled, readable, training_share
from ..screen import command, command_line, counted, file_size, near, row
from ..teachers import Teacher, match_channels, open_teacher
from ..teachers.prompted import give_prompts, words_of
from ..teachers.sizes import check_reads, size_warnings
from .answering import coarsest_stride, numbered, spelling
from .copying import complete_lookup
from .manifest import Manifest
from .options import CACHE_ONLY, USED, check_options
from .store import MANIFEST, Store, locked
from .work import Executor, LocalExecutor, Portion, Work


def make_cache(given: Mapping[str, Any]) -> Store:
    """Compute and store the answers of one or several teachers to the images of a training, as `yolo-kd cache` does.

    Args:
        given (Mapping): `teacher`, `data`, options in `CACHE_ONLY`, and Ultralytics' arguments in `USED`.

    Returns:
        (Store): The cache.

    Raises:
        KDError: If an argument is missing, unknown or invalid, or an image cannot be answered.

    Examples:
        >>> from ultralytics_kd import YOLO
        >>> store = make_cache({"teacher": "yolo26x.pt", "data": "coco8.yaml", "kd_cache": "answers"})
        >>> YOLO("yolo26n.pt").train(data="coco8.yaml", teacher="yolo26x.pt", kd_cache=str(store.folder))
    """
    check_plain(given)
    check_values({"kd_cache": given.get("kd_cache") or True, "kd_unlabeled": given.get("kd_unlabeled")})
    for name in ("teacher", "data"):
        if not given.get(name):
            raise KDError(f"'yolo-kd cache' needs {name}=PATH.")
    check_names("yolo-kd cache", given, (*USED, *CACHE_ONLY))
    options = check_options({**CACHE_ONLY, **{k: v for k, v in given.items() if k in CACHE_ONLY}})
    overrides = {k: v for k, v in given.items() if k in USED and k not in {"teacher", "kd_cache"}}
    register_arguments()
    args = get_cfg(overrides={"task": "detect", "mode": "train", **overrides})
    args.kd_cache = given.get("kd_cache") or True
    args.data = str(convert_ndjson_to_yolo_if_needed(args.data))
    whole_number("batch", args.batch)
    if args.kd_teacher_imgsz is not None:
        check_teacher_size(args.kd_teacher_imgsz)
        check_scored_larger(args.kd_teacher_imgsz, args.imgsz)
        if options["kd_cache_imgsz"] is not None:
            raise KDError("'kd_cache_imgsz' and 'kd_teacher_imgsz' are both the size that the teacher sees: drop one.")
    store = build_cache(args, as_list(given["teacher"]), options, needs_words=args.kd_classes != "auto")
    LOGGER.info("\n".join(_end_text(given, store)))
    return store


def _end_text(given: Mapping[str, Any], store: Store) -> list[str]:
    """Return the lines that say what a cache holds, and how to train with it."""
    size = file_size(sum(shard.stat().st_size for shard in store.shards()))
    kd = ("kd_trust_teacher", "kd_teacher_imgsz", "kd_classes", "kd_unlabeled")
    shared = {name: given[name] for name in ("data", "teacher", "imgsz", "fraction", *kd) if name in given}
    train = command_line("train", {"model": "yolo26n.pt", **shared, "kd_cache": near(store.folder)})
    return [
        colorstr("Cache:"),
        *row("answers", f"to {counted(store.count(), 'image')}, {size}"),
        *row("folder", near(store.folder)),
        *command(train),
    ]


def build_cache(
    args: Any,
    sources: list[Any],
    options: dict[str, Any],
    needs_words: bool = False,
    names: Mapping[int, str] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Store:
    """Answer all training images of a data set, and those of `kd_unlabeled`, that have no stored answer yet.

    Args:
        args (Namespace): Arguments of a training, those in `USED` at least.
        sources (list): Teachers: paths, names that Ultralytics downloads, or models.
        options (dict): Options of the cache, from `check_options`.
        needs_words (bool): Whether there must be a prompted teacher, because `kd_classes` is given for it.
        names (Mapping[int, str], optional): The student's classes, which prompted teachers look for; the data's classes
            if None.
        progress (Callable, optional): Called with the number of images of each batch, after it was answered.

    Returns:
        (Store): The cache, with an answer to every image.

    Raises:
        KDError: If the folder holds something else, a teacher's answers cannot be stored, or an image cannot be read.

    Examples:
        >>> register_arguments()
        >>> args = get_cfg(overrides={"data": "coco8.yaml", "kd_cache": "answers"})
        >>> store = build_cache(args, ["yolo26x.pt"], check_options(CACHE_ONLY))
    """
    teachers = [open_teacher(source, trust=args.kd_trust_teacher) for source in sources]
    for teacher in teachers:
        if teacher.follows_student:
            raise KDError(
                f"teacher={teacher.source} changes during training, so its answers cannot be stored: give another "
                "teacher, or train without kd_cache."
            )
        if teacher.backbones:
            raise KDError(f"teacher={teacher.source} teaches by features, and a cache stores detections: give another.")
    data = _description(args)
    asked = give_prompts(teachers, names or data["names"], args.kd_classes)
    if needs_words and not asked:
        raise KDError(
            "'kd_classes' has no effect on stored answers, which are those of the teacher's own classes: give it to "
            "the training. Here it is for the words of YOLO-World and YOLOE."
        )
    unlabeled = find_unlabeled(parse_list(args.kd_unlabeled)) if args.kd_unlabeled else []
    for teacher in asked:
        teacher.embed()
    device = select_device(args.device, verbose=False)
    manifest = _manifest(args, teachers, options, data, device)
    store = Store(_folder(args, data, manifest))
    if args.kd_precision == "auto" and store.has(store.folder / MANIFEST):  # made on another device, perhaps
        manifest = replace(manifest, precision=store.manifest().precision)
    for sentence in size_warnings(teachers, manifest.imgsz, str(store.folder)):
        LOGGER.warning(sentence)
    work = Work(
        folder=str(store.folder),
        sources=[_portable(source) for source in sources],
        manifest=manifest,
        batch=_batch(args),
        workers=args.workers,
        trust=args.kd_trust_teacher,
        words=words_of(asked),
    )
    with locked(store.folder, f"give another folder. A training reads the answers there with kd_cache={store.folder}."):
        files = _image_files(args, data, unlabeled)  # before anything is written
        with _executor(options["ray"], teachers, manifest, device) as executor:
            _answer_missing(store, work, files, options["kd_cache_shard"], executor, progress)
    return store


def _answer_missing(
    store: Store,
    work: Work,
    files: list[str],
    size: int,
    executor: Executor,
    progress: Callable[[int], Any] | None,
) -> None:
    """Answer those images that have no answer yet.

    Args:
        store (Store): The cache, its lock held.
        work (Work): The teachers and the settings of the answers.
        files (list[str]): Image files.
        size (int): Images per shard.
        executor (Executor): Computes the answers, here or on a cluster.
        progress (Callable | None): As for `build_cache`.
    """
    store.begin(work.manifest)
    for path in store.damaged():
        LOGGER.warning(f"{path} is damaged: its images are answered again.")
        path.unlink()
    keys = store.image_keys(files, write=True, hash_all=executor.hash)
    portions, answered = _portions(store, keys, size)
    count = sum(len(p.files) for p in portions)
    images = counted(answered + count, "image")
    LOGGER.info(f"{colorstr('Cache:')} {answered:,} of {images} have answers in {near(store.folder)}")
    if portions:
        bar = TQDM(total=answered + count, initial=answered, desc="Answering images")

        def answered_batch(images: int) -> None:
            """Count the images of a batch."""
            bar.update(images)
            if progress is not None:
                progress(images)

        executor.answer(work, portions, answered_batch)
        bar.close()
    complete_lookup(store, keys.values())  # trainings may not be allowed to write here


@contextmanager
def _executor(ray: bool | int, teachers: list[Teacher], manifest: Manifest, device: torch.device) -> Iterator[Executor]:
    """Yield the executor: this process, or a Ray cluster."""
    if not ray:
        yield LocalExecutor(teachers, manifest, device)
        return
    from .ray_cluster import RayExecutor  # Ray is optional

    with RayExecutor(ray) as executor:
        yield executor


def _manifest(
    args: Any, teachers: list[Teacher], options: dict[str, Any], data: dict, device: torch.device
) -> Manifest:
    """Return the manifest of the answers that arguments and options ask for.

    Raises:
        KDError: If a teacher does not fit the data.
    """
    key = spelling([t.names for t in teachers])
    classes: dict[tuple[str, int], str] = {}  # a class that teachers spell differently is one
    for teacher in teachers:
        for one, name in zip(numbered(teacher.names, key), teacher.names.values()):
            classes.setdefault(one, name)
    for teacher in teachers:
        match_channels(teacher, data["channels"])
    auto = "fp16" if device.type == "cuda" else "fp32"
    return Manifest(
        teachers=[{"name": t.name, "sha256": t.fingerprint()} for t in teachers],
        names=dict(enumerate(classes.values())),
        imgsz=answered_size(args, teachers, options["kd_cache_imgsz"]),
        conf=options["kd_cache_conf"],
        iou=options["kd_cache_iou"],
        topk=options["kd_cache_topk"],
        scales=options["kd_cache_scales"],
        flip=options["kd_cache_flip"],
        precision=auto if args.kd_precision == "auto" else args.kd_precision,
        channels=data["channels"],
        versions=versions(),
    )


def answered_size(args: Any, teachers: list[Teacher], asked: int | None = None) -> int:
    """Return the side in pixels of the images that teachers answer for a cache, a multiple of their strides.

    Args:
        args (Namespace): Arguments with `imgsz`, and `kd_teacher_imgsz` if the teachers see larger images.
        teachers (list[Teacher]): Inspected teachers.
        asked (int, optional): The option `kd_cache_imgsz`, which may also be less than `imgsz`.

    Raises:
        KDError: If a teacher is a file that reads smaller images alone than are asked for.
    """
    larger = args.kd_teacher_imgsz
    side = asked or (args.imgsz if larger is None else teacher_size(larger, rounded_size(args.imgsz)))
    side = int(check_imgsz(side, stride=coarsest_stride(teachers), max_dim=1))  # as training does
    if asked or larger is not None:
        check_reads(teachers, side, f"kd_cache_imgsz={asked}" if asked else f"kd_teacher_imgsz={larger}")
    return side


def _folder(args: Any, data: dict, manifest: Manifest) -> Path:
    """Return the given folder, or a default one: its name depends only on data, teachers and size."""
    if isinstance(args.kd_cache, (str, Path)):
        return Path(args.kd_cache).resolve()
    with override_configs(
        args, {"name": "kd_cache", "exist_ok": True, "save_dir": None, "resume": False}
    ) as folder_args:
        parent = output_folder(folder_args)
    data_name, hashes = Path(data["path"]).resolve().name, [t["sha256"][:8] for t in manifest.teachers]
    stems = [Path(t["name"]).stem for t in manifest.teachers]

    def ending(stems: Iterable[str]) -> str:
        """Return the end of the folder's name, for teachers' files of these names."""
        return f"-{'-'.join(f'{stem}-{sha}' for stem, sha in zip(stems, hashes))}-{manifest.imgsz}"

    folder = parent.resolve() / f"{data_name}{ending(stems)}"
    pattern = f"{glob.escape(data_name)}{ending(['*'] * len(stems))}/{MANIFEST}"
    renamed = [] if folder.exists() else sorted(parent.resolve().glob(pattern))  # a teacher's file was
    return renamed[0].parent if renamed else folder


def _description(args: Any) -> dict[str, Any]:
    """Return Ultralytics' description of the data, which need no training images beside those of `kd_unlabeled`.

    Raises:
        KDError: If there are no images to answer.
    """
    if not lacks_training_images(args.data, "detect"):
        return check_det_dataset(args.data)
    if not args.kd_unlabeled:
        raise KDError(f"data={args.data} has no training images to answer: name them under train:, or in kd_unlabeled.")
    with TemporaryDirectory() as folder:
        return check_det_dataset(with_train_entry(args.data, Path(folder)))


def _image_files(args: Any, data: dict, unlabeled: list[str]) -> list[str]:
    """Return the images that a training would read: those of the data, and those without labels that can be read."""
    files: list[str] = []
    if data.get("train"):
        fraction = get_split_fraction(args.fraction, "train")
        with override_configs(args, {"cache": False, "rect": False}) as scan_args:
            files += build_yolo_dataset(scan_args, data["train"], 1, data, mode="val", fraction=fraction).im_files
    if unlabeled:
        good = readable(unlabeled)
        files += good if data.get("train") else training_share(good, args.fraction)
    return list(dict.fromkeys(files))


def _portions(store: Store, keys: dict[str, str], size: int) -> tuple[list[Portion], int]:
    """Return the images without an answer, divided into portions, and the number of images with one.

    Files with the same content are answered once. Portions are cut from the list of all images. So an interrupted cache
    gets the same shards, from the same batches, as an uninterrupted one. New images among answered ones share portions.

    Args:
        store (Store): The cache.
        keys (dict[str, str]): Key of every image file.
        size (int): Images per portion.
    """
    file_of = {key: file for file, key in reversed(keys.items())}  # the first of several copies
    ordered = list(dict.fromkeys(keys[f] for f in sorted(keys)))
    answered = store.keys()
    portions, scattered = [], []
    for i in range(0, len(ordered), size):
        part = ordered[i : i + size]
        missing = [k for k in part if k not in answered]
        if len(missing) == len(part):
            portions.append(missing)
        else:
            scattered += missing
    portions += [scattered[i : i + size] for i in range(0, len(scattered), size)]
    return [Portion([file_of[k] for k in part], part) for part in portions], len(answered & set(ordered))


def _batch(args: Any) -> int:
    """Return the images per batch: Ultralytics' default if `batch` leaves the choice to AutoBatch."""
    return args.batch if isinstance(args.batch, int) and args.batch > 0 else DEFAULT_CFG.batch


def _portable(source: Any) -> Any:
    """Return a teacher in a form that other machines can load."""
    return str(Path(source).resolve()) if isinstance(source, (str, Path)) and Path(source).is_file() else source
