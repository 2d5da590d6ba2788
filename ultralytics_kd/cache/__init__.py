"""Teacher answers that are computed once per image and stored."""

from .options import CACHE_ONLY, USED, make_cache

__all__ = ("CACHE_ONLY", "USED", "make_cache")
