"""Ask the system what this process does to the files of some folders, also through libraries without Python."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

__all__ = ["Listener", "listener"]

# fanotify_init: close on exec, never wait, report a folder and a name with each event.
CLOSE_ON_EXEC, NO_WAIT, FOLDER_AND_NAME = 0x1, 0x2, 0xC00
# fanotify_mark: add a mark; paths count from the working folder.
ADD, HERE = 0x1, -100
# Events: modified, attributes (a time that is set), moved from, moved to, created, deleted; of files in the folder, and
# of folders in it.
WANTED = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200 | 0x08000000 | 0x40000000
OVERFLOW = 0x4000
# The head of an event, and of the records after it; from the head of a record to the folder's handle, and the handle's.
EVENT, RECORD = struct.Struct("IBBHQii"), struct.Struct("BBH")
TO_HANDLE, HANDLE = 12, struct.Struct("Ii")
# The kind of a record that ends in a name.
NAMED = 2
MOST_BYTES = 1 << 16


@dataclass
class Listener:
    """An open fanotify group: what processes do in marked folders, each event with its process if that is this one.

    `descriptor` is the group's. `marked` holds the real paths of folders in which everything is reported.
    """

    descriptor: int
    marked: set[str] = field(default_factory=set)

    def mark(self, folders: Iterable[str]) -> None:
        """Report events in these folders from now on, where their file system can; give real paths."""
        library = ctypes.CDLL(None)
        for folder in folders:
            # Again each time: another folder may have come in the place of one that was marked.
            path = ctypes.c_char_p(os.fsencode(folder))
            done = library.fanotify_mark(self.descriptor, ADD, ctypes.c_uint64(WANTED), HERE, path)
            (self.marked.discard if done else self.marked.add)(folder)

    def names(self) -> frozenset[str] | None:
        """Return the names of files and folders that this process touched since last asked; None if some were lost."""
        found: set[str] = set()
        lost = False
        try:
            while block := os.read(self.descriptor, MOST_BYTES):
                for mask, process, name in _events(block):
                    lost |= bool(mask & OVERFLOW)
                    # Of other processes, the system reports 0 or their own number.
                    if process == os.getpid():
                        found.add(os.fsdecode(name))
        except BlockingIOError:
            pass  # no more for now
        except OSError:
            return None
        return None if lost else frozenset(found)

    def close(self) -> None:
        """End it."""
        os.close(self.descriptor)


def listener() -> Listener | None:
    """Open a listener, or return None where there is none: no Linux of 5.13 or later, or not allowed (in containers).

    Source:
        Linux manual pages, fanotify(7), fanotify_init(2): without privileges, the process is told if it is the
        listener's own.
    """
    if sys.platform != "linux":
        return None
    try:
        descriptor = ctypes.CDLL(None).fanotify_init(CLOSE_ON_EXEC | NO_WAIT | FOLDER_AND_NAME, os.O_RDONLY)
    except (OSError, AttributeError):
        return None
    return None if descriptor < 0 else Listener(descriptor)


def _events(block: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (mask, process, name) of every name in a block of events."""
    start = 0
    while start < len(block):
        length, _, _, record, mask, _, process = EVENT.unpack_from(block, start)
        record += start
        start += length
        if record == start:
            yield mask, process, b""
        while record < start:
            kind, _, size = RECORD.unpack_from(block, record)
            if kind == NAMED:
                handle_size, _ = HANDLE.unpack_from(block, record + TO_HANDLE)
                name = block[record + TO_HANDLE + HANDLE.size + handle_size : record + size]
                yield mask, process, name.split(b"\0")[0]
            record += size
