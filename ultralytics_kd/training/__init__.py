"""The touch points to Ultralytics' training loop, and what belongs to a run with a teacher."""
