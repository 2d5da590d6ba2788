"""Terms: what of student and teacher is compared, at which anchor points, and by which loss."""

from .build import Heads, Term, TermContext, build_terms, dense_terms

__all__ = ("Heads", "Term", "TermContext", "build_terms", "dense_terms")
