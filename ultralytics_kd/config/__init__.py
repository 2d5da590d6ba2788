"""The kd arguments, their checks, recipes and objects of the user's own code.

Files:
    arguments: the table of arguments: groups, names, defaults, types, accepted values and help.
    help: this table as text.
    command_help: the help of each command of `yolo-kd`.
    checks: each argument alone, and all of them together.
    idle: arguments that were set and change nothing.
    recipes: files of arguments that may come from a stranger.
    user_code: objects that an argument names as `module:name`.
    registration: the changes in Ultralytics that make the arguments known.
    changes: makes and undoes changes in Ultralytics.
    input_errors: errors in the user's input, told from faults in the code.
    kept_classes, sure_boxes, teacher_size: `kd_keep`, `kd_unlabeled_boxes` and `kd_teacher_imgsz`.
    label_free: data sets without training images.
"""

from .arguments import ARGUMENTS, GRID_TASKS, GROUPS, TASK_WEIGHTS, TASKS, as_list, has_teacher, parse_list
from .checks import check_combination, check_own_command, check_plain, check_user_losses, check_values
from .command_help import COMMANDS, command_help
from .help import cfg_text, help_text
from .idle import Idle, idle_arguments
from .registration import register, register_arguments

__all__ = (
    "ARGUMENTS",
    "COMMANDS",
    "GRID_TASKS",
    "GROUPS",
    "TASKS",
    "TASK_WEIGHTS",
    "Idle",
    "as_list",
    "cfg_text",
    "check_combination",
    "check_own_command",
    "check_plain",
    "check_user_losses",
    "check_values",
    "command_help",
    "has_teacher",
    "help_text",
    "idle_arguments",
    "parse_list",
    "register",
    "register_arguments",
)
