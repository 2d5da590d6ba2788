"""`python -m ultralytics_kd` is `yolo-kd`."""

from .cli import entrypoint

if __name__ == "__main__":
    entrypoint()
