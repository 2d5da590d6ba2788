"""The touch points to Ultralytics' training loop, and what belongs to a run with a teacher.

Files:
    mixin: every method that Ultralytics' training loop calls.
    distillation: teacher, terms and answers of one run.
    teacher_source: the `teacher` argument: opened, named, kept beside the run.
    beginning: the weights that a student begins with (`kd_init`).
    calibration: training batches that are looked at before the training, for that.
    first_step: checks of first batches: that they distil.
    answer_sources: the answer to a batch, from the teacher or from a cache.
    large_images, two_sizes: a teacher that sees larger images than the student, and a data set that has both.
    unlabeled, unlabeled_images: images without labels that join the batches.
    autobatch: what AutoBatch profiles, so that the teacher fits in memory too.
    run_folder: the run's folder: claimed, and removed if the run never starts.
    checkpoints, resuming, random_streams: checkpoints, and how a run continues from one.
    moved_run: files of a run whose folder was moved or copied.
    distributed: runs of several processes.
    evaluation, tables: the teacher's scores, plots and tables.
    tuning: searches over kd arguments.
"""
