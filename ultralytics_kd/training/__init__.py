"""The touch points to Ultralytics' training loop, and what belongs to a run with a teacher.

Files:
    mixin: every method that Ultralytics' training loop calls.
    distillation: teacher, terms and answers of one run.
    answer_sources: the answer to a batch, from the teacher or from a cache.
    stored_answers: opens the cache of a run, or makes it first.
    data_classes: the data set's classes, and the rules by which a teacher's are matched.
    first_step: checks that the first batches distil.
    beginning: the weights that a student begins with (`kd_init`).
    calibration: training batches for `kd_init`, drawn before the training.
    keeping: new classes without forgetting (`kd_keep`).
    autobatch: what AutoBatch profiles, so that the teacher fits in memory too.
    distributed: runs of several processes.
    tuning: searches over kd arguments.

Folders:
    images: larger images for the teacher, and images without labels.
    run: the run's folder, checkpoints and resuming.
    scores: scores of teacher and student, tables and plots.
"""
