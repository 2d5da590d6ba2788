"""What a run says of itself: scores of teacher and student, tables and plots.

Files:
    evaluation: the teacher's score beside the student's, and plots of the terms.
    scoring: a validation after the training, in one process or several.
    kept_scores: scores on the val set of `kd_keep_data`.
    tables: the tables at the start and at the end of a run.
    next_bench: the command of a bench with the arguments of a training.
"""
