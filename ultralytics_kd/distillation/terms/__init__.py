"""Terms: each compares one output of student and teacher, at certain anchor points, by a loss."""

from .build import Backbones, Heads, Term, TermContext, build_terms, dense_terms

__all__ = ("Backbones", "Heads", "Term", "TermContext", "build_terms", "dense_terms")
