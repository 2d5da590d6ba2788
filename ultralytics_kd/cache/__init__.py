"""Teacher answers that are computed once per image and stored."""

from .build import make_cache
from .options import CACHE_ONLY, USED

__all__ = ("CACHE_ONLY", "USED", "make_cache")
