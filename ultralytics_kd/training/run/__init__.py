"""What a run leaves on disk, and how it continues from that.

Files:
    run_folder: the run's folder: claimed, and removed if the run never starts.
    teacher_source: the `teacher` argument: opened, named, kept beside the run.
    checkpoints, resuming, random_streams: checkpoints, and how a run continues from one.
    moved_run: files of a run whose folder was moved or copied.
"""
