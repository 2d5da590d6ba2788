"""`yolo-kd`, and `python -m ultralytics_kd`: the command line, or a sentence where Ultralytics lacks what it needs."""

import sys

from . import activation
from .errors import KDError


def entrypoint() -> None:
    """Run the console script."""
    try:
        from .cli import main
    except KDError as e:
        if sys.argv[1:] == ["disable"]:  # the way out, where plain `yolo` fails for the same reason
            print(f"Disabled: 'yolo' is Ultralytics' own again ({activation.disable()} is gone).")
            return
        sys.exit(f"ERROR {e}")
    sys.exit(main())


if __name__ == "__main__":
    entrypoint()
