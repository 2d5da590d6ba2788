"""The share of a teacher's lead that a student closes."""

from __future__ import annotations

MIN_LEAD = 0.001  # a smaller lead is noise, so a share of it has no meaning


def gap_closed(teacher: float, baseline: float, student: float, min_lead: float = MIN_LEAD) -> float | None:
    """Return the share of the gap between two scores that the student closes; None if the gap is below a minimum.

    Args:
        teacher (float): The teacher's score.
        baseline (float): Score of the student alone.
        student (float): Score of the distilled student.
        min_lead (float): Least lead of the teacher over the student alone.
    """
    lead = teacher - baseline
    return (student - baseline) / lead if lead >= min_lead else None
