"""The rule of the advice: will this teacher make this student better than it would be alone?

A student can learn from a teacher what it would not learn from the labels by itself. So the rule compares the teacher's
score with that of the student trained alone, on the same val images. A class that the teacher does not know counts 0,
because the student learns it from labels alone. In the study of this project most students closed a fifth of this
lead or more (examples/advice/check.py prints the table). So a lead below `MARGIN` may gain less than a change of seed.

Without the score of a finished student the lead is not known. Then a lower bound must be enough: the student's score as
it is, or after a short training alone. No teacher below this bound can help. A teacher above it must compute more than
the student, by its size or its images, and its gradients must agree with the labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..distillation.balance import FADES, OFF

GO, NO_GO, UNCERTAIN = "GO", "NO GO", "UNCERTAIN"
MARGIN = 0.02  # of the score, 0 to 1
MORE = 1.5  # times the student's computation that a teacher needs where its lead is not known
MANY_SWAPS = 0.5  # share of the labels that the teacher sees with confidence, but as another class
FEWEST_CONFIDENT = 10  # a share of fewer labels says nothing
TRAINED, SHORTLY, ITSELF = "trained", "shortly", "itself"  # where the score of the student alone is from


@dataclass(frozen=True)
class Facts:
    """What the verdict on a teacher depends on.

    Attributes:
        score (float): The teacher's score on the val images.
        alone (float | None): Score of the student without a teacher; None if it has none.
        origin (str | None): Where `alone` is from: `TRAINED` (a finished training, `baseline=`), `SHORTLY` (a training
            of a minute) or `ITSELF` (the student as it is given).
        lead (float | None): The teacher's score minus the student's; a class that the teacher does not know counts 0.
        cosine (float | None): Cosine between the gradients of the labels and of all terms; None if it is not known.
        computes (float | None): The teacher's computation over the student's, each at its own image size.
        covered (int): Classes that the teacher knows.
        classes (int): Classes of the data.
        swapped (float): Share of the labels that it sees with confidence, but as another class.
        trained (str): How long the short training was, in words.
        smaller (str): A sentence if the teacher sees smaller images than it was trained with.
    """

    score: float
    alone: float | None = None
    origin: str | None = None
    lead: float | None = None
    cosine: float | None = None
    computes: float | None = None
    covered: int = 1
    classes: int = 1
    swapped: float = 0.0
    trained: str = ""
    smaller: str = ""


def judge(facts: Facts) -> tuple[str, str]:
    """Return the verdict on a teacher, and the reason in one sentence.

    Args:
        facts (Facts): What was measured.
    """
    verdict, reason = _judge(facts)
    return verdict, f"{reason} {facts.smaller}" if facts.smaller and verdict != GO else reason


def _judge(facts: Facts) -> tuple[str, str]:
    """Return the verdict and the reason, whatever the size of the teacher's images."""
    if facts.lead is not None and facts.lead <= 0:
        return NO_GO, f"{_scores(facts)}: there is nothing to learn from it{_names(facts)}."
    if facts.swapped >= MANY_SWAPS:
        return NO_GO, f"{_scores(facts)}{_names(facts)}."
    return _by_lead(facts) if facts.origin == TRAINED else _without_lead(facts)


def _by_lead(facts: Facts) -> tuple[str, str]:
    """Return the verdict where the score of the student trained alone is known."""
    assert facts.lead is not None
    if facts.lead < MARGIN:
        return UNCERTAIN, f"{_scores(facts)}: a lead of {facts.lead:.3f} may gain less than two seeds differ by."
    if facts.cosine is not None and facts.cosine < OFF:
        return UNCERTAIN, (
            f"{_scores(facts)}, but its gradients do not agree with the labels' (cosine {facts.cosine:+.2f}): "
            "kd_weight=auto turns off terms that go on like this."
        )
    return GO, f"{_scores(facts)}{_covered(facts)}."


def _without_lead(facts: Facts) -> tuple[str, str]:
    """Return the verdict where the score of the finished student is not known."""
    if facts.cosine is not None and facts.cosine < OFF:
        return NO_GO, f"its gradients do not agree with the labels' ({_cosine(facts)})."
    if facts.cosine is not None and facts.cosine < FADES:
        return UNCERTAIN, f"its gradients hardly agree with the labels' ({_cosine(facts)})."
    if facts.computes is None or facts.computes < MORE:
        size = "is not known to compute more than" if facts.computes is None else f"computes {facts.computes:.1f} times"
        return UNCERTAIN, (
            f"{_scores(facts)}, but it {size} what the student does, and the score of that, trained alone to the end, "
            "is not known (baseline=alone.pt)."
        )
    if facts.lead is not None and facts.lead < MARGIN:
        return UNCERTAIN, f"{_scores(facts)}, and the student may well pass it (baseline=alone.pt would tell)."
    agrees = "" if facts.cosine is None else f" and its gradients agree with the labels' (cosine {facts.cosine:+.2f})"
    return GO, f"{_scores(facts)}, it computes {facts.computes:.1f} times as much{agrees}{_covered(facts)}."


def _cosine(facts: Facts) -> str:
    """Return the cosine of the gradients, and the least that counts as agreement."""
    return f"cosine {facts.cosine:+.2f}, at least {FADES} is needed"


def _scores(facts: Facts) -> str:
    """Return the score of the teacher beside that of the student, as the beginning of a sentence."""
    if facts.alone is None:
        return f"it scores {facts.score:.3f}"
    of_student = {
        TRAINED: "the student trained alone",
        SHORTLY: f"the student alone after {facts.trained}",
        ITSELF: "the student as it is",
    }[str(facts.origin)]
    return f"it scores {facts.score:.3f}, {of_student} {facts.alone:.3f}"


def _covered(facts: Facts) -> str:
    """Return how many classes are taught, if not all are."""
    return "" if facts.covered == facts.classes else f"; it knows {facts.covered} of {facts.classes} classes"


def _names(facts: Facts) -> str:
    """Return a doubt about the teacher's class names, if it takes most objects for other classes."""
    if facts.swapped < MANY_SWAPS:
        return ""
    return (
        f"; it takes {facts.swapped:.0%} of the objects that it sees for another class, so its class names may be in a "
        "wrong order (kd_classes)"
    )


def best_of(teachers: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the teacher to take: of those with the best verdict the one that scores highest; None if all are NO GO.

    Args:
        teachers (list[dict]): Each with "verdict" and "score".
    """
    for verdict in (GO, UNCERTAIN):
        of_verdict = [teacher for teacher in teachers if teacher["verdict"] == verdict]
        if of_verdict:
            return max(of_verdict, key=lambda teacher: float(teacher["score"]))
    return None
