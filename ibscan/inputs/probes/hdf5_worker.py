"""Read the arrays of an HDF5 file in a process of its own: `python -P -m ibscan.inputs.probes.hdf5_worker`.

Of 1000 files with a flipped byte each, about one makes the HDF5 library end its process or never return.
`ibscan.inputs.probes.child_arrays` describes the messages.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import h5py
import numpy as np

from ibscan.core.records import Array
from ibscan.inputs.probes.child_arrays import Listing, UnreadableArray, extend_limits, serve
from ibscan.inputs.probes.named_arrays import MAX_ARRAY_BYTES

MOST_LINKS, DEEPEST = 10_000, 16
# The largest factor by which a filter inflates.
FILTERS = {h5py.h5z.FILTER_DEFLATE: 1040, h5py.h5z.FILTER_LZF: 90, h5py.h5z.FILTER_SHUFFLE: 1, 3: 1}
NUMBERS = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM)
UNREAD_KINDS = {h5py.h5t.COMPOUND: "records (a compound type)", h5py.h5t.REFERENCE: "references (a MATLAB cell array?)"}
VARYING_BYTES = 16
TEXT_BLOCK, LEAST_TEXT = 256, 1 << 20


def _listing(content: str | bytes) -> Listing | None:
    if isinstance(content, bytes):
        file = h5py.File(h5py.h5f.open_file_image(content))
    else:
        file = h5py.File(content, "r", locking=False)
    if _text_attribute(file, "format") == "ibscan":
        return None
    found = _Datasets(file)
    return Listing({key: one.shape or () for key, one in found.arrays.items()} | found.links, found.read)


def _text_attribute(owner: h5py.File | h5py.Dataset, name: str) -> str:
    """Return an attribute of one string, or the empty string for another."""
    if name not in owner.attrs:
        return ""
    described = owner.attrs.get_id(name)
    if described.shape not in ((), (1,)) or h5py.check_string_dtype(described.dtype) is None:
        return ""
    value = np.asarray(owner.attrs[name]).ravel()[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class _Datasets:
    """The datasets of a file by path, and its links, which are not followed."""

    def __init__(self, file: h5py.File) -> None:
        self.arrays: dict[str, h5py.Dataset] = {}
        self.links: dict[str, tuple[int, ...]] = {}
        self.seen = 0
        self.size = file.id.get_filesize()
        self._walk(file, "", frozenset())

    def _walk(self, group: h5py.Group, before: str, parents: frozenset[int]) -> None:
        address = int(h5py.h5o.get_info(group.id).addr)
        # A hard link may lead back to a parent.
        if address in parents:
            return
        for name in group:
            self.seen += 1
            if self.seen > MOST_LINKS or len(parents) > DEEPEST:
                raise UnreadableArray(
                    f"holds more than {MOST_LINKS} entries, or groups deeper than {DEEPEST}; it is no probe"
                )
            key = f"{before}{name}"
            # Looking the object up would follow the link.
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                self.links[key] = ()
                continue
            one = group[name]
            if isinstance(one, h5py.Dataset):
                self.arrays[key] = one
            # Skip MATLAB's groups of cell contents and of the parts of sparse arrays.
            elif isinstance(one, h5py.Group) and not name.startswith("#") and "MATLAB_sparse" not in one.attrs:
                self._walk(one, f"{key}/", parents | {address})

    def read(self, key: str) -> Array:
        """Return one array, with the changes that MATLAB makes to it undone."""
        if key in self.links:
            raise UnreadableArray("is a link, and links are never followed; copy the array itself into the file")
        dataset = self.arrays[key]
        _check_dataset(dataset, self.size)
        values = _texts(dataset, self.size) if dataset.id.get_type().get_class() == h5py.h5t.STRING else dataset[()]
        return _undo_matlab(_text_attribute(dataset, "MATLAB_class"), np.asarray(values))


def _undo_matlab(matlab: str, array: Array) -> Array:
    """Undo the storage of MATLAB: arrays transposed, characters as numbers, logicals as bytes."""
    if not matlab:
        return array
    array = array.T
    if matlab == "logical":
        return array.astype(np.bool_)
    if matlab != "char" or array.dtype.kind not in "iu":
        return array
    rows = array.reshape(len(array), -1).tolist() if array.size else []
    return np.array(["".join(map(chr, row)).rstrip() for row in rows], dtype=np.str_)


def _check_dataset(dataset: h5py.Dataset, size: int) -> None:
    """Refuse data outside the file, of another kind than numbers and text, or more than the file can hold."""
    if dataset.is_virtual or dataset.external:
        raise UnreadableArray("takes its numbers from other files, which are never opened; copy them into this one")
    kind = dataset.id.get_type().get_class()
    if kind not in (*NUMBERS, h5py.h5t.STRING):
        raise UnreadableArray(
            f"holds {UNREAD_KINDS.get(kind, 'neither numbers nor text')}; save plain numbers, or strings as labels"
        )
    if dataset.shape is None or "MATLAB_empty" in dataset.attrs:
        raise UnreadableArray("is empty")
    filters = dict(_filters(dataset))
    unknown = {code: name for code, name in filters.items() if code not in FILTERS}
    if unknown:
        code, name = next(iter(unknown.items()))
        raise UnreadableArray(
            f"is stored through the filter {name or code} ({code}), not read here; save it with gzip or none"
        )
    wanted = math.prod(dataset.shape) * dataset.id.get_type().get_size()
    if math.prod(dataset.shape) * dataset.dtype.itemsize > MAX_ARRAY_BYTES:
        raise UnreadableArray(f"of shape {dataset.shape} takes {wanted} bytes, at most {MAX_ARRAY_BYTES} are read")
    stored = dataset.id.get_storage_size()
    if stored > size or wanted > stored * math.prod(FILTERS[code] for code in filters):
        raise UnreadableArray(
            f"of shape {dataset.shape} takes {wanted} bytes, of which the file cannot hold all ({stored})"
        )
    extend_limits(wanted + stored)
    if dataset.chunks is not None:
        _check_chunks(dataset, list(filters))


def _filters(dataset: h5py.Dataset) -> Iterator[tuple[int, str]]:
    creation = dataset.id.get_create_plist()
    for position in range(creation.get_nfilters()):
        code, _, _, name = creation.get_filter(position)
        yield code, name.decode("utf-8", "replace")


def _check_chunks(dataset: h5py.Dataset, filters: list[int]) -> None:
    """Inflate every chunk into a bounded buffer first: the library inflates without a bound."""
    kind = dataset.id.get_type()
    # Strings of varying length are stored as a length and an address.
    varying = kind.get_class() == h5py.h5t.STRING and kind.is_variable_str()
    declared = math.prod(dataset.chunks) * (VARYING_BYTES if varying else kind.get_size())
    if declared > MAX_ARRAY_BYTES:
        raise UnreadableArray(f"is stored in chunks of {declared} bytes, at most {MAX_ARRAY_BYTES} are read")
    stored_chunks: list[tuple[tuple[int, ...], int, int]] = []
    dataset.id.chunk_iter(lambda chunk: stored_chunks.append((chunk.chunk_offset, chunk.filter_mask, chunk.size)))
    deflated = h5py.h5z.FILTER_DEFLATE in filters
    bit = 1 << filters.index(h5py.h5z.FILTER_DEFLATE) if deflated else 0
    for offset, mask, size in stored_chunks:
        if size > declared + declared // 8 + 1024:
            raise UnreadableArray(f"has a chunk of {size} bytes where at most {declared} belong; the file is damaged")
        if deflated and not mask & bit:
            inflater = zlib.decompressobj()
            _, raw = dataset.id.read_direct_chunk(offset)
            # Plus a checksum of 4 bytes.
            inflater.decompress(raw, declared + 4)
            if not inflater.eof and inflater.decompress(inflater.unconsumed_tail, 1):
                raise UnreadableArray(f"has a chunk that inflates beyond its {declared} bytes; the file is damaged")


def _texts(dataset: h5py.Dataset, size: int) -> Array:
    texts: list[str] = []
    total = longest = 0
    # In blocks, with a running total: a million strings may share one megabyte of the file.
    for start in range(0, dataset.shape[0], TEXT_BLOCK) if dataset.shape else (None,):
        block = np.asarray(dataset[()] if start is None else dataset[start : start + TEXT_BLOCK])
        words = [word if isinstance(word, bytes) else str(word).encode() for word in block.ravel().tolist()]
        total += sum(map(len, words))
        longest = max([longest, *map(len, words)])
        if total > max(size, LEAST_TEXT) or 4 * longest * math.prod(dataset.shape) > MAX_ARRAY_BYTES:
            raise UnreadableArray("holds more text than labels do")
        texts += [word.decode("utf-8", "replace") for word in words]
    return np.array(texts, dtype=np.str_).reshape(dataset.shape)


if __name__ == "__main__":
    serve(_listing)
