"""From the raw outputs of student and teacher to the distillation loss.

The path of a batch: `loss` appends the terms to the base loss. It calls `distillers.grid` or `distillers.dense`, which
holds all terms of a run, puts student and teacher side by side (`pairs`) and calls each term (`terms`). A term calls a
function of `ultralytics_kd.losses`.

- The class term gives every anchor point of a pair a weight of 1; the box term uses the pair's `box_weight`. `pairs`
  and, for sets of instances, `assignment` decide which background anchor points a pair holds.
- If a part of the loss becomes NaN or Inf, `loss.FirstNonFinite` records which one was first, and the trainer restores
  the last checkpoint.
- A teacher handles NaN and Inf in its own outputs. On CUDA, in half precision with `kd_precision=auto`, its check is
  late: the terms of a batch with NaN or Inf get a factor of 0.

Files:
    loss: Ultralytics' loss plus the terms, and which part became NaN or Inf first.
    ignored_background: entries of Ultralytics' class loss that count as unknown, not as background.
    pseudo_boxes: a teacher's confident detections in images without labels, as labels of the base loss.
    keeping: kept classes that the data do not label, in the base loss and the answer (`kd_keep`).
    balance: automatic weights of the terms (`kd_weight`).
    distillers: all terms of one run, with weights, schedule and adapters.
    terms: one file for each kind of term, and how they are built.
    pairs: the input of the terms.
    assignment: sets of instances assigned to the student's anchor points.
    task_aligned: the rule of this assignment, for many instances.
"""
