"""From the raw outputs of student and teacher to the distillation loss.

The way of a batch: `loss` (base loss plus terms) calls `distillers.grid` or `distillers.dense` (all terms of a run),
which puts student and teacher side by side (`pairs`) and calls each term (`terms`), which calls a formula in
`ultralytics_kd.losses`.
"""
