"""What the terminal shows: lines of 80 columns, units, names for people, and the next step."""

from __future__ import annotations

import doctest
import importlib
import shlex
from types import SimpleNamespace

import pytest
import torch
from conftest import STUDENT, TEACHER, save_model, unwrapped
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER, remove_colorstr

from ultralytics_kd import KDError, cli, config, screen
from ultralytics_kd.bench.table import Run, summarize
from ultralytics_kd.bench.text import ONE_SEED, SHOWN, losses, next_command, to_text
from ultralytics_kd.config.registration import ARGUMENT_CHANGES
from ultralytics_kd.demo.run import Arm, _report
from ultralytics_kd.report import score_names
from ultralytics_kd.report.score_names import END2END, NMS
from ultralytics_kd.teachers import open_teacher
from ultralytics_kd.training.scores import tables

PACKAGES = {"advise": "advice", **{name: name for name in ("bench", "cache", "demo", "report")}}
LONG = "a_folder_with_a_name_that_fills_a_line/" * 3 + "yolo0n.yaml"


def too_wide(text: str) -> list[str]:
    """Return the lines that a terminal of 80 columns wraps, but for those of a path or word that fills it alone."""
    lines = remove_colorstr(text).splitlines()
    return [line for line in lines if len(line) > 80 and max(map(len, line.split())) < 60]


def test_examples_of_the_docstrings_are_true():
    assert doctest.testmod(screen) == (0, 8)
    assert doctest.testmod(score_names) == (0, 1)


def test_columns_that_do_not_fit_follow_below_and_no_cell_is_lost():
    lines = [
        ["", *(f"seed {i}" for i in range(20))],
        ["alone", *(f"{i / 10:.4f}" for i in range(20))],
        ["x", *[""] * 20],
    ]
    text = "\n".join(screen.table(lines))
    assert not too_wide(text) and all(f" {cell}" in text for line in lines for cell in line[1:])
    assert text.count("alone") == len(text.splitlines()) / 2 and "x" not in text


def test_no_line_ends_between_a_number_and_its_unit():
    for width in range(1, 40):
        lines = screen.row("memory", f"{'x' * width} alone 0.01 GiB, 12 ms " * 6)
        assert not too_wide("\n".join(lines)) and not any(line[-1].isdigit() for line in lines)


def test_a_command_stays_one_for_the_shell():
    line = "yolo-kd train " + " ".join(f"name{i}={'v' * i}" for i in range(40))
    lines = screen.command(line)
    assert not too_wide("\n".join(lines)) and len(lines) > 5
    assert " ".join(part.removesuffix("\\").strip() for part in lines).removeprefix("next").split() == line.split()


# Help -----------------------------------------------------------------------------------------------------------------
def test_every_kd_argument_is_in_one_group_and_once_in_the_help():
    names = [name for group in config.GROUPS for name in group.arguments]
    assert sorted(names) == sorted(set(names)) == sorted(config.ARGUMENTS)
    words = config.help_text().split()
    for name, argument in config.ARGUMENTS.items():
        default = "" if argument.default is None else argument.default
        assert words.count(f"{name}={default}") == 1
    assert [group.expert for group in config.GROUPS] == sorted(group.expert for group in config.GROUPS)
    assert not too_wide(config.help_text())


def test_help_shows_first_what_this_package_adds(caplog):
    LOGGER.propagate = True
    assert cli.main(["help"]) == 0
    LOGGER.propagate = False
    text = "\n".join(dict.fromkeys(record.getMessage() for record in caplog.records))  # some are captured twice
    places = [text.index(s) for s in ("A first example", "bench", "kd_cls=2.0", "for experts", "yolo TASK MODE ARGS")]
    assert places == sorted(places) and text.count("kd_cls=2.0") == 1
    assert not too_wide(cli.HELP)


@pytest.mark.parametrize("command", ["advise", "bench", "cache", "demo", "report"])
def test_help_of_a_command_names_its_arguments_within_80_columns(command, caplog):
    LOGGER.propagate = True
    assert cli.main([command, "help"]) == 0
    LOGGER.propagate = False
    said = "\n".join(dict.fromkeys(record.getMessage() for record in caplog.records))  # some are captured twice
    assert f"yolo-kd {command}" in said and not too_wide(said)
    its = importlib.import_module(f"ultralytics_kd.{PACKAGES[command]}")
    own, texts = vars(its)[f"{PACKAGES[command].upper()}_ONLY"], config.COMMANDS[command].own
    assert list(texts) == list(own) and all(said.count(f"\n      {name}=") == 1 for name in own)


@pytest.mark.parametrize(
    "line, reason",
    [
        (["train", "teacher"], "missing an '=' sign"),
        (["train", "kd_clss=3"], "'kd_clss' is not a valid"),
        (["demo", "epoch=3"], "'epoch' is not a valid"),
    ],
)
def test_an_error_ends_with_its_reason_and_not_with_a_screen_of_help(caplog, line, reason):
    LOGGER.propagate = True
    assert cli.main(line) == 1
    LOGGER.propagate = False
    assert reason in caplog.text and "TASK MODE ARGS" not in caplog.text and "yolo-kd help" in caplog.text


@pytest.mark.parametrize("name", [name for name, argument in config.ARGUMENTS.items() if argument.bounds])
def test_the_bounds_of_the_table_are_those_of_the_checks(name):
    above, most = config.ARGUMENTS[name].bounds
    config.check_values({name: float(most)})
    for value in (above, most + 1):
        with pytest.raises(KDError, match=f"greater than {above} and at most {most}"):
            config.check_values({name: float(value)})
    assert f"{above:g}" in config.ARGUMENTS[name].range and f"{most:g}" in config.ARGUMENTS[name].range


def test_plain_yolo_has_the_same_help_once_it_is_enabled():
    change = next(change for change in ARGUMENT_CHANGES if change.part == "CLI_HELP_MSG")
    assert change.replace("THE REST").startswith(config.help_text())


# Tables of a training -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a student, and a teacher in a folder with a long name that knows its classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("a_folder_with_a_name_that_is_long_enough_to_be_wrapped") / "teacher.pt"
    teacher = open_teacher(str(save_model(path, TEACHER)), "detect")
    student = DetectionModel(STUDENT, nc=3, verbose=False)
    teacher.match({0: "disc", 1: "box", 2: "bar"})
    return student, teacher


def test_no_line_of_the_start_table_is_wrapped(models):
    student, teacher = models
    terms = {name: SimpleNamespace(adapters=torch.nn.Conv2d(64, 640, 1)) for name in ("kd_cls", "kd_feat")}
    distiller = SimpleNamespace(
        levels="strides 8, 16, 32, one2many and one2one", names=("kd_cls", "kd_box", "kd_feat"), terms=terms,
        balance=None, weights={"kd_cls": 2.0, "kd_feat": 1.0},
    )  # fmt: skip
    args = get_cfg(overrides={"model": LONG, "task": "detect", "teacher": "t.pt", "imgsz": 64})
    text = tables.start_table(args, student, teacher, distiller, "the student's own", kept=f"{LONG} " * 3)
    assert not too_wide(text) and LONG in text and str(teacher.source) in text
    assert "GFLOPs at 64 px" in text and "weight 2, loss bckd, constant" in text


@pytest.mark.parametrize("task, groups", [("detect", "B"), ("segment", "BM"), ("pose", "BP")])
def test_no_line_of_the_end_table_is_wrapped(models, task, groups, monkeypatch):
    _, teacher = models
    monkeypatch.setattr(teacher, "task", task)
    kinds = ("precision", "recall", "mAP50", "mAP50-95")
    scores = {f"metrics/{kind}({group})": 0.1234 for group in groups for kind in kinds}
    text = tables.end_table(scores, scores, teacher, (64, 96), LONG, "NMS")
    assert not too_wide(text) and text.count("0.1234") == 2 * len(scores)
    part = {"B": "", "M": "mask ", "P": "pose "}[groups[-1]]
    assert f"The student keeps 100.0% of the teacher's {part}mAP50-95." in text
    assert tables.AS_GOOD in unwrapped(text)
    monkeypatch.setattr(teacher, "trained_imgsz", 320)
    smaller = unwrapped(tables.end_table(scores, scores, teacher, (64, 96), LONG, "NMS"))
    says = "was trained at 320 px and saw 96 px" in smaller
    assert (says, tables.AS_GOOD in smaller) == ((True, False) if task == "detect" else (False, True))
    better = tables.end_table(
        scores, {key: value + 0.1 for key, value in scores.items()}, teacher, (64, 96), LONG, "NMS"
    )
    assert tables.AS_GOOD not in unwrapped(better) and not too_wide(better)
    assert (
        "Scores are of the NMS head" in text
        and "metrics/" not in text
        and "(B)" not in text
        and ("box recall" in text) is (len(groups) > 1)
    )
    next_step = tables.next_step(f"yolo-kd bench data={LONG} model={LONG} epochs=100")
    assert LONG in text and "yolo-kd bench" in next_step and not too_wide(next_step)


def test_scores_of_one_model_make_a_table_if_the_other_could_not_be_scored():
    scores = {"metrics/mAP50-95(B)": 0.1234, "metrics/mAP50(B)": 0.4321, "fitness": 0.1}
    for pair in ((scores, {}), ({}, scores)):
        lines = tables.scores_table("On old data:", *pair, "detect").splitlines()
        found = {line.split()[0]: line.split()[1:] for line in lines[2:]}
        full, empty = ("student", "teacher") if pair[0] else ("teacher", "student")
        assert found == {full: ["0.1234", "0.4321"], empty: ["-", "-"]}


# Tables of commands ---------------------------------------------------------------------------------------------------
def record(score: float, seconds: float = 283.0) -> dict:
    """Return the record of a model."""
    heads = {head: {"score": score, "second": score + 0.2} for head in (NMS, END2END)}
    return {"scores": heads, "seconds": seconds, "epochs": 1, "batch": 4, "parameters": 10, "unmatched": []}


def bench(folder, seeds: int, names: tuple[str, ...]) -> str:
    """Return what a bench prints."""
    runs = [Run(arm, seed, record(0.3 + 0.1 * i + 0.01 * seed)) for i, arm in enumerate(names) for seed in range(seeds)]
    teachers = {arm: record(0.6 + i / 10) for i, arm in enumerate(names[1:])}
    arms = {arm: {"teacher": "a teacher.pt"} for arm in names[1:]} | {"alone": {}}
    report = {"settings": {"arms": arms, "data": "d.yaml", "imgsz": 64}, **summarize(list(names), runs, teachers)}
    return to_text(report, folder)


@pytest.mark.parametrize(
    "names", [("alone", "builtin", "kd"), ("alone", "kd", "an_arm_with_a_name_of_" + "letters" * 9)]
)
def test_no_row_of_a_bench_is_wrapped_however_many_seeds_and_long_its_names(tmp_path, names):
    text = bench(tmp_path, 12, names)
    assert not too_wide(text) and "seed 11" in text and "4.7 min (1.00x)" in text
    assert "NMS-free" in text and "end2end" not in text and SHOWN.split(" has ")[0] in text
    assert screen.shortened(names[-1]) in text


def test_a_bench_says_which_arms_lost_and_which_teachers_are_no_better():
    runs = [
        Run(arm, seed, record(score + 0.01 * seed)) for arm, score in (("alone", 0.4), ("kd", 0.3)) for seed in (0, 1)
    ]
    report = summarize(
        ["alone", "kd"], [*runs, Run("kd", 2, record(0.33)), Run("alone", 2, record(0.42))], {"kd": record(0.35)}
    )
    worse, weak = losses(report)
    assert worse == "Worse than the student alone: kd."
    assert weak == "No better than the student alone: the teacher of kd. It has nothing to teach."
    assert (
        losses(summarize(["alone", "kd"], runs[:1] + runs[2:3], {"kd": record(0.6)})) == []
    )  # one seed has no interval


def test_a_teacher_that_lacks_classes_is_not_called_no_better():
    runs = [Run(arm, seed, record(0.4)) for arm in ("alone", "kd") for seed in (0, 1)]
    assert losses(summarize(["alone", "kd"], runs, {"kd": record(0.3) | {"unmatched": ["cup"]}})) == []


def test_a_bench_names_the_head_at_which_a_teacher_is_no_better():
    runs = [Run(arm, seed, record(0.4)) for arm in ("alone", "kd") for seed in (0, 1)]
    teacher = record(0.6)
    teacher["scores"][END2END]["score"] = 0.3
    assert losses(summarize(["alone", "kd"], runs, {"kd": teacher})) == [
        "No better than the student alone: the teacher of kd (NMS-free). It has nothing to teach."
    ]


def test_a_bench_names_the_command_that_shows_where_its_best_arm_gains(tmp_path):
    assert "next" not in bench(tmp_path, 1, ("alone", "kd"))  # the runs were removed
    for name in ("alone-0", "kd-0"):
        (tmp_path / "runs" / name / "weights").mkdir(parents=True)
        (tmp_path / "runs" / name / "weights" / "best.pt").touch()
    text = " ".join(bench(tmp_path, 1, ("alone", "kd")).replace("\\\n", " ").split())
    assert " ".join(ONE_SEED.split()) in text
    assert f"yolo-kd report 'teacher=a teacher.pt' student={tmp_path}/runs/kd-0/weights/best.pt" in text
    assert f"baseline={tmp_path}/runs/alone-0/weights/best.pt data=d.yaml imgsz=64" in text


def test_the_next_command_of_a_bench_scores_as_the_bench_did(tmp_path):
    for name in ("alone-0", "kd-0"):
        (tmp_path / "runs" / name / "weights").mkdir(parents=True)
        (tmp_path / "runs" / name / "weights" / "best.pt").touch()

    def following(**arm) -> str:
        """Return the command of a bench whose arm has these arguments."""
        settings = {"arms": {"alone": {}, "kd": {"teacher": "t.pt", **arm}}, "data": "d.yaml", "classes": [0, 2]}
        runs = [Run("alone", 0, record(0.3)), Run("kd", 0, record(0.4))]
        return next_command({"settings": settings, **summarize(["alone", "kd"], runs, {})}, tmp_path)

    words = shlex.split(following(kd_classes={"a": "b"}, kd_teacher_imgsz=96, kd_cls=2.0))
    assert {'kd_classes={"a":"b"}', "kd_teacher_imgsz=96", "classes=[0,2]", "data=d.yaml"} < {*words}
    assert not any("kd_cls=" in word for word in words)
    assert "data=old.yaml" in shlex.split(following(kd_keep=True, kd_keep_data="old.yaml"))
    assert following(kd_keep=True) == ""  # the old model may know none of the new classes


@pytest.mark.parametrize("path", ["/home/me/my own project with a long name/teachers/best.pt", "/a/b.pt"])
def test_a_shell_reads_a_command_in_lines_as_the_command(path):
    line = screen.command_line("report", {"teacher": path, "student": LONG, "data": "my data.yaml", "imgsz": 64})
    shown = "\n".join(screen.command(line, title="")).replace("\\\n", "")  # as a shell joins lines
    assert shlex.split(shown) == shlex.split(line) and f"teacher={path}" in shlex.split(line)


def test_the_end_of_a_demo_fits_and_names_what_to_do_with_own_data():
    arms = [Arm(name, 0.1234, 0.2345, 2_506_140, 283.0, f"{LONG}/{name}") for name in ("teacher", "alone", "distilled")]
    text = _report(arms, {"gap_closed": None, "picture": LONG})
    assert not too_wide(text) and "4.7 min" in text and f"{LONG}/distilled" in text
    assert "yolo-kd bench data=your.yaml" in text
