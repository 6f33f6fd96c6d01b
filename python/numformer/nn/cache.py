"""`numformer.KVCache`, where layers look for it."""

from numformer.cache import KVCache

__all__ = ["KVCache"]
