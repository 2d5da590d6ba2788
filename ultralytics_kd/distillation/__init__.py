"""From the raw outputs of student and teacher to the distillation loss.

The way of a batch: `loss` (base loss plus terms) calls `distillers.grid` or `distillers.dense` (all terms of a run),
which puts student and teacher side by side (`pairs`) and calls each term (`terms`), which calls a formula in
`ultralytics_kd.losses`.

- The weight of each anchor point, background included, is decided in `pairs` and, for sets of instances, `assignment`.
- If a part of the loss becomes NaN or Inf, `loss.FirstNonFinite` records which one was first, and the trainer restores
  the last checkpoint. NaN or Inf in a teacher's answer is handled by the teacher; its batch then has a factor of 0.
"""
