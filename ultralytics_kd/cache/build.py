"""Making a cache: which images lack an answer, who answers them, and in which portions they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader, Dataset
from ultralytics import __version__ as ultralytics_version
from ultralytics.data.augment import LetterBox
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset, get_split_fraction
from ultralytics.utils import DEFAULT_CFG, LOGGER, TQDM, colorstr
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.patches import imread, override_configs
from ultralytics.utils.torch_utils import select_device

from .. import __version__
from ..errors import KDError
from ..files import lock_file, make_folder, output_folder
from ..teachers import Teacher, open_teacher
from .answering import Answerer, coarsest_stride
from .store import Manifest, Row, Store, hash_images


@dataclass(frozen=True)
class Portion:
    """The images of one shard.

    Attributes:
        files (list[str]): Image files.
        keys (list[str]): Their keys.
    """

    files: list[str]
    keys: list[str]


@dataclass(frozen=True)
class Work:
    """How portions are answered; it travels to other machines.

    Attributes:
        folder (str): Cache folder.
        sources (list[Any]): Teachers, as paths or models.
        manifest (Manifest): The question.
        batch (int): Images per batch.
        workers (int): Processes that read images.
        trust (bool): Whether files of teachers may run code when they are opened.
    """

    folder: str
    sources: list[Any]
    manifest: Manifest
    batch: int
    workers: int
    trust: bool = False


def build_cache(args: Any, sources: list[Any], options: dict[str, Any]) -> Store:
    """Answer all training images of a data set that have no answer yet.

    Args:
        args (Namespace): Ultralytics' arguments: data, imgsz, batch, workers, device, fraction, kd_cache, kd_precision.
        sources (list): Teachers: paths, names that Ultralytics downloads, or models.
        options (dict): Options of the cache, as `options.CACHE_ONLY` has them.

    Returns:
        (Store): The cache, with an answer to every image.

    Raises:
        KDError: If the folder holds something else, a teacher cannot answer, or an image cannot be read.
    """
    teachers = [open_teacher(source, trust=args.kd_trust_teacher) for source in sources]
    for teacher in teachers:
        if teacher.follows_student:
            raise KDError(f"teacher={teacher.source} changes with the student: it has no answers that could be stored.")
    data = check_det_dataset(args.data)
    device = select_device(args.device, verbose=False)
    manifest = _manifest(args, teachers, options, data, device)
    store = Store(_folder(args, data, manifest))
    with _alone(store.folder), _workers(options["ray"], teachers, manifest, device) as workers:
        store.begin(manifest)
        for path in store.damaged():
            LOGGER.warning(f"{path} is damaged: its images are answered again.")
            path.unlink()
        keys = store.image_keys(_image_files(args, data), write=True, hash_all=workers.hash)
        portions, known = _portions(store, keys, options["kd_cache_shard"])
        count = sum(len(p.files) for p in portions)
        LOGGER.info(f"{colorstr('cache:')} {known} images have answers in {store.folder}, {count} have none")
        if portions:
            movable = [_movable(s) for s in sources]
            work = Work(str(store.folder), movable, manifest, _batch(args), args.workers, args.kd_trust_teacher)
            bar = TQDM(total=known + count, initial=known, desc="Answering images")
            workers.answer(work, portions, bar.update)
            bar.close()
    return store


@contextmanager
def _workers(ray: bool | int, teachers: list[Teacher], manifest: Manifest, device: torch.device) -> Iterator[Any]:
    """Yield who does the work: this process, or a Ray cluster."""
    if ray:
        from .ray_cluster import Cluster

        with Cluster(ray) as cluster:
            yield cluster
    else:
        yield Here(teachers, manifest, device)


class Here:
    """This process and its device."""

    def __init__(self, teachers: list[Teacher], manifest: Manifest, device: torch.device):
        """Take note of the teachers; they are prepared when there is something to answer."""
        self.question = teachers, manifest, device

    def hash(self, files: list[str]) -> Iterator[tuple[str, str]]:
        """Yield path and key of each image."""
        return hash_images(files)

    def answer(self, work: Work, portions: list[Portion], done: Callable[[int], Any]) -> None:
        """Answer portions and write their shards.

        Args:
            work (Work): The question, the folder and how images are read.
            portions (list[Portion]): What is to be answered.
            done (Callable): Called with the number of images of each batch.
        """
        answerer, store = Answerer(*self.question), Store(work.folder)
        for portion in portions:
            store.write(list(answer(answerer, portion, work, done)))


def answer(answerer: Answerer, portion: Portion, work: Work, done: Callable[[int], Any]) -> Iterator[Row]:
    """Yield the rows of a portion, in order.

    Args:
        answerer (Answerer): The teachers.
        portion (Portion): The images.
        work (Work): Batch size and number of processes that read images.
        done (Callable): Called with the number of images of each batch.
    """
    images = LetterboxedImages(portion.files, work.manifest.imgsz, work.manifest.channels)
    loader = DataLoader(images, batch_size=work.batch, num_workers=min(work.workers, len(images) // work.batch))
    first = 0
    for batch, heights, widths in loader:
        keys = portion.keys[first : first + len(batch)]
        yield from answerer(batch, list(zip(heights.tolist(), widths.tolist())), keys)
        first += len(batch)
        done(len(batch))


class LetterboxedImages(Dataset):
    """Images of one size, as a model sees them when it predicts."""

    def __init__(self, files: list[str], imgsz: int, channels: int):
        """Take note of files.

        Args:
            files (list[str]): Image files.
            imgsz (int): Side of the square in pixels.
            channels (int): Channels of the images.
        """
        self.files, self.letterbox = files, LetterBox(imgsz, auto=False)
        self.flag = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int, int]:
        """Return an image of shape (C, imgsz, imgsz), RGB, uint8, and its height and width as read."""
        image = imread(self.files[i], flags=self.flag)
        if image is None:
            raise KDError(f"image {self.files[i]} cannot be read.")
        height, width = image.shape[:2]
        square = self.letterbox(image=image if image.ndim == 3 else image[..., None])
        square = square[..., ::-1] if square.shape[-1] == 3 else square  # BGR to RGB
        return torch.from_numpy(square.transpose(2, 0, 1).copy()), height, width


def _manifest(
    args: Any, teachers: list[Teacher], options: dict[str, Any], data: dict, device: torch.device
) -> Manifest:
    """Return the question that arguments and options put."""
    names = list(dict.fromkeys(name for t in teachers for name in t.names.values()))
    for teacher in teachers:
        if teacher.channels != data["channels"]:
            raise KDError(
                f"teacher={teacher.source} reads images of {teacher.channels} channel(s), the data has "
                f"{data['channels']}."
            )
        if len(set(teacher.names.values())) != len(teacher.names):
            raise KDError(
                f"teacher={teacher.source} has several classes of one name: a cache tells them apart by name."
            )
    auto = "fp16" if device.type == "cuda" else "fp32"
    stride = coarsest_stride(teachers)
    return Manifest(
        teachers=[{"name": t.name, "sha256": t.fingerprint()} for t in teachers],
        names=dict(enumerate(names)),
        imgsz=check_imgsz(options["kd_cache_imgsz"] or args.imgsz, stride=stride, min_dim=1),
        conf=options["kd_cache_conf"],
        iou=options["kd_cache_iou"],
        topk=options["kd_cache_topk"],
        scales=options["kd_cache_scales"],
        flip=options["kd_cache_flip"],
        precision=auto if args.kd_precision == "auto" else args.kd_precision,
        channels=data["channels"],
        versions={"ultralytics_kd": __version__, "ultralytics": ultralytics_version, "torch": torch.__version__},
    )


def _folder(args: Any, data: dict, manifest: Manifest) -> Path:
    """Return the folder that was asked for, or the one among the runs that these answers always have."""
    if isinstance(args.kd_cache, (str, Path)):
        return Path(args.kd_cache).resolve()
    with override_configs(args, {"name": "kd_cache", "exist_ok": True, "save_dir": None, "resume": False}) as place:
        home = output_folder(place)
    teachers = "-".join(f"{Path(t['name']).stem}-{t['sha256'][:8]}" for t in manifest.teachers)
    return home.resolve() / f"{Path(data['path']).resolve().name}-{teachers}-{manifest.imgsz}"


def _image_files(args: Any, data: dict) -> list[str]:
    """Return the images that a training on the data reads."""
    fraction = get_split_fraction(args.fraction, "train")
    with override_configs(args, {"cache": False, "rect": False}) as plain:
        return build_yolo_dataset(plain, data["train"], 1, data, mode="val", fraction=fraction).im_files


def _portions(store: Store, keys: dict[str, str], size: int) -> tuple[list[Portion], int]:
    """Return the images without an answer, one file per content, in shards, and how many have one.

    `keys` has the key of every file.

    Images are counted off over the whole data set, so that a cache that was cut is finished with the shards, and the
    batches in them, that it would have had.
    """
    first = {key: file for file, key in reversed(keys.items())}  # a second copy of an image has the same answer
    ordered = list(dict.fromkeys(keys[f] for f in sorted(keys)))
    known = store.keys()
    portions = []
    for i in range(0, len(ordered), size):
        missing = [k for k in ordered[i : i + size] if k not in known]
        if missing:
            portions.append(Portion([first[k] for k in missing], missing))
    return portions, len(known & set(ordered))


def _batch(args: Any) -> int:
    """Return the images per batch; where training is to find out what fits, answering takes Ultralytics' default."""
    return args.batch if isinstance(args.batch, int) and args.batch > 0 else DEFAULT_CFG.batch


def _movable(source: Any) -> Any:
    """Return a teacher as other machines can load it."""
    return str(Path(source).resolve()) if isinstance(source, (str, Path)) and Path(source).is_file() else source


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process fills the same cache, and keep others from it."""
    make_folder(folder)
    lock = FileLock(lock_file(folder))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        LOGGER.info(f"{colorstr('cache:')} another process fills {folder}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
