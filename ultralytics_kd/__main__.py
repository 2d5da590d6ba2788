"""`yolo-kd` and `python -m ultralytics_kd`: the command line, or one sentence if Ultralytics lacks a needed part."""

import sys

from . import activation
from .errors import KDError


def entrypoint() -> None:
    """Run the console script."""
    try:
        from .cli import main
    except KDError as e:
        if sys.argv[1:] == ["disable"]:  # it must work: plain `yolo` fails for the same reason until then
            print(activation.disabled())
            return
        sys.exit(f"ERROR {e}")
    sys.exit(main())


if __name__ == "__main__":
    entrypoint()
