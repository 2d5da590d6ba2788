"""A `YOLO` whose `train` and `tune` take a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics.engine.model import Model
from ultralytics.models.yolo.model import YOLO as _YOLO

from .config import as_list
from .config.named_files import FILES, absolute
from .config.recipes import call_with_recipe, calling, check_unfinished, warn_of_idle
from .errors import KDError
from .trainer import TRAINERS
from .training.tuning import search_arguments


class YOLO(_YOLO):
    """Ultralytics' YOLO with distillation.

    `train` and `tune` also take `teacher` and the kd arguments; everything else is Ultralytics' own. Without a teacher
    a training is Ultralytics', bit for bit.

    Examples:
        >>> from ultralytics_kd import YOLO
        >>> YOLO("yolo26n.pt").train(data="coco8.yaml", teacher="yolo26x.pt")
    """

    def train(self, trainer: Any = None, **kwargs: Any) -> Any:
        """Train, with a teacher if one is given.

        Args:
            trainer (type[BaseTrainer], optional): Trainer class in place of the task's.
            **kwargs (Any): Ultralytics' arguments, `teacher` and the kd arguments.

        Returns:
            (DetMetrics | dict): What Ultralytics' `train` returns.

        Raises:
            KDError: If the distillation cannot run as asked, or a kd argument is given without a teacher.
        """
        with calling(kwargs):
            check_unfinished(self, kwargs)
            return super().train(trainer=trainer, **(kwargs if trainer else sweep_arguments(kwargs)))

    def tune(self, use_ray: bool = False, iterations: int = 300, *args: Any, **kwargs: Any) -> Any:
        """Search hyperparameters as Ultralytics does; with a teacher, each training of the search is a distillation.

        Args:
            use_ray (bool): Whether Ray Tune searches, and not Ultralytics' own tuner.
            iterations (int): Number of trainings.
            *args (Any): Ultralytics' arguments for Ray: space, grace_period, gpu_per_trial.
            **kwargs (Any): Ultralytics' arguments, `teacher` and the kd arguments. `space` may hold kd
                arguments: numbers with bounds (low, high) for either tuner, all others with Ray's `tune.choice`.

        Returns:
            (ResultGrid | None): What Ultralytics' `tune` returns.

        Raises:
            KDError: If the teacher is an object in memory, or the space cannot be searched.

        Examples:
            >>> from ultralytics_kd import YOLO
            >>> space = {"kd_cls": (0.2, 4.0), "kd_box": (2.0, 16.0)}
            >>> YOLO("yolo26n.pt").tune(data="coco8.yaml", teacher="yolo26x.pt", space=space, iterations=30)
        """
        return tune(self, use_ray, iterations, *args, **kwargs)

    def val(self, *args: Any, **kwargs: Any) -> Any:
        """Validate as Ultralytics does; kd arguments bring a warning, here and in the next three."""
        warn_of_idle("val", kwargs)
        return super().val(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict as Ultralytics does."""
        warn_of_idle("predict", kwargs)
        return super().predict(*args, **kwargs)

    def track(self, *args: Any, **kwargs: Any) -> Any:
        """Track as Ultralytics does."""
        warn_of_idle("track", kwargs)
        return super().track(*args, **kwargs)

    def export(self, **kwargs: Any) -> Any:
        """Export as Ultralytics does."""
        warn_of_idle("export", kwargs)
        return super().export(**kwargs)

    @property
    def task_map(self) -> dict[str, dict[str, Any]]:
        """Models, distilling trainers, validators and predictors by task."""
        return with_distilling_trainers(super().task_map)


def _check_is_file(teacher: Any, purpose: str) -> None:
    """Raise if a teacher is an object in memory, which other processes cannot get."""
    if not all(isinstance(each, (str, Path, type(None))) for each in as_list(teacher)):
        raise KDError(f"the processes that {purpose} cannot get a teacher in memory: save it and give its path.")


def sweep_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `train`; over several data sets, other processes get them, which need names of files.

    Args:
        arguments (dict): Arguments of `train`.

    Raises:
        KDError: If such a process cannot get the teacher, as it is in memory.
    """
    if not isinstance(arguments.get("data"), (list, tuple)):
        return arguments
    _check_is_file(arguments.get("teacher"), "train on several data sets")
    return {name: absolute(value) if name in FILES else value for name, value in arguments.items()}


def tune(self: _YOLO, use_ray: bool = False, iterations: int = 300, *args: Any, **kwargs: Any) -> Any:
    """Search as Ultralytics does; the arguments are checked first and mean the same for both of its tuners."""
    kwargs = call_with_recipe(kwargs)
    _check_is_file(kwargs.get("teacher"), "search")
    self._check_is_pytorch_model()
    if use_ray:  # give its positional arguments their names
        kwargs.update(zip(("space", "grace_period", "gpu_per_trial"), args))
        args = args[3:]
    searched = search_arguments(kwargs, self.task, use_ray, self.overrides)
    own_class = type(self)
    if use_ray and own_class is _YOLO:  # Ray's processes unpickle the model, and learn of kd arguments by its class
        self.__class__ = YOLO
    try:
        return Model.tune(self, use_ray, iterations, *args, **searched)
    finally:
        self.__class__ = own_class


def with_distilling_trainers(task_map: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a task map with the distilling counterpart of each trainer that has one.

    Args:
        task_map (dict): Models, trainers, validators and predictors by task, as `YOLO.task_map` returns them.
    """
    return {
        task: {**parts, "trainer": TRAINERS.get(parts["trainer"], parts["trainer"])} for task, parts in task_map.items()
    }
