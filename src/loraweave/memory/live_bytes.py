"""How many bytes of tensors are alive at once while some code runs.

Torch's own allocator tells that on CUDA only, and only afterwards. Here every operation is looked
at, so it works on any device and on fake tensors, which have shapes and nothing in them: the memory
of a run is then known before it is begun.
"""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts storages that are made inside this context, until they are gone.

    Attributes:
        now, peak: bytes.
        largest: bytes of the largest one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(x)._cdata for x in tree_leaves((args, kwargs)) if _is_plain(x)}
        out = func(*args, **(kwargs or {}))
        if any(one.alias_info is not None for one in func._schema.returns):
            return out  # a view, or written in place: nothing is made
        for x in tree_leaves(out):
            if _is_plain(x) and (storage := _storage(x))._cdata not in given:
                self._note(storage)
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak, self.largest = max(self.peak, self.now), max(self.largest, size)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _is_plain(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.layout == torch.strided


def _storage(x: torch.Tensor) -> torch.UntypedStorage:
    return x.untyped_storage()
