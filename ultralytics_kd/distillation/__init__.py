"""From the raw outputs of student and teacher to the distillation loss.

The way of a batch: `loss` adds the terms to the base loss. It calls `distillers.grid` or `distillers.dense`, which
holds all terms of a run, puts student and teacher side by side (`pairs`) and calls each term (`terms`). A term calls a
function of `ultralytics_kd.losses`.

- The weight of each anchor point, background included, is decided in `pairs` and, for sets of instances, `assignment`.
- If a part of the loss becomes NaN or Inf, `loss.FirstNonFinite` records which one was first, and the trainer restores
  the last checkpoint. NaN or Inf in a teacher's answer is handled by the teacher; its batch then has a factor of 0.
"""
