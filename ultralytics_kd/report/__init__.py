"""Reports: teacher, baseline and student side by side, as metrics, pictures and a page.

Files:
    options: the options of a report.
    run: reports from the command line, from Python and at the end of a training.
    compared_model: one model: its heads, its validation, its cost.
    validation: one run of Ultralytics' validator, with its detections and labels.
    dense: predictions of models without boxes.
    metrics, score_names: the metrics, and the names of the scores of each task.
    gap: the share of a teacher's lead that a student closes.
    matching: agreement with another model or with labels, and calibration.
    object_sizes: mAP of small, medium and large objects.
    latency: the time for one image.
    datasets: class names from a data set.
    plots, pictures, feature_maps: the charts and pictures.
    report_folder, page: the folder of a report, and its HTML page.
"""

from .options import REPORT_ONLY, USED
from .run import run_report

__all__ = ("REPORT_ONLY", "USED", "run_report")
