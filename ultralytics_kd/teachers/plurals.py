"""English plurals: pairs of a teacher's and a student's class name that are plural and singular."""

from __future__ import annotations

from collections.abc import Mapping


def match_plurals(students: Mapping[int, str], teachers: Mapping[int, str]) -> list[tuple[int, int]]:
    """Match names that differ as plural and singular.

    Args:
        students (Mapping[int, str]): The student's names by index, in lower case.
        teachers (Mapping[int, str]): The teacher's names by index, in lower case.

    Returns:
        (list[tuple[int, int]]): Teacher and student index of every match.
    """
    if not students or not teachers:
        return []
    forms = _plurals({*students.values(), *teachers.values()})
    return [
        (i, j)
        for i, teacher in teachers.items()
        for j, student in students.items()
        if teacher in forms[student] or student in forms[teacher]
    ]


def _plurals(names: set[str]) -> dict[str, set[str]]:
    """Return the plurals of each name; "person" has people and persons.

    Only plurals are formed, because a singular would be a guess: "lens" would become "len".
    """
    import inflect  # takes a second to import, and is needed only where names differ

    engines = inflect.engine(), inflect.engine()
    engines[1].classical(all=True)

    def plurals(name: str) -> set[str]:
        """Return the plurals of one name."""
        if len(name) < 3:  # often a letter, and "as" is not the plural of "a"
            return set()
        try:
            return {str(engine.plural_noun(name)) for engine in engines}
        except Exception:  # inflect fails on some texts that are not English, such as "-of-b'"
            return set()

    return {name: plurals(name) for name in names}
