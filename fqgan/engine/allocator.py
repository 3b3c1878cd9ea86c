"""The C library's allocator, set for large tensors that come and go."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
_LARGEST = 2**31 - 1
_LARGEST_BEFORE_2_35 = 2**25  # the threshold that older versions of glibc take; they refuse larger ones


def keep_freed_memory() -> None:
    """Keep freed memory in the process instead of handing it back after each tensor.

    By default glibc maps every block above 32 MiB anew, and the kernel clears it page by page: an elementwise
    operation on a large feature map then takes 3 to 5 times as long. Elsewhere than on glibc nothing happens.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - not there in other C libraries
        # a refused threshold would stay where it is for good, as setting the other one ends its growth
        if not libc.mallopt(_MMAP_THRESHOLD, _LARGEST):
            libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BEFORE_2_35)
        libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
