"""Teacher answers that are computed once per image and stored.

Files:
    options: the options of `yolo-kd cache`.
    build: makes a cache: which images lack an answer, the settings, the run.
    work, ray_cluster: computing the answers in this process, or on many devices and machines.
    answering: detections, class probabilities and confidence at each scale, from frozen teachers.
    store: a cache folder, its files and how they are written.
    manifest: the teachers and settings of a cache.
    shards, parquet: tables with the answers.
    keys: which stored answer belongs to an image: a hash of its file.
    lookup, copying: a file with single answers for random access, and how it is made from the shards.
    answers: the answers to a data set's images, for the student's classes.
    dataset: a data set that adds the answers to its samples.
    augmentation: moves stored boxes with the same random parameters as the labels.
    scales: the confidence at the size that the student sees.
"""

from .build import make_cache
from .options import CACHE_ONLY, USED

__all__ = ("CACHE_ONLY", "USED", "make_cache")
