"""Metadata: the only place that writes and reads zarr.json.

An array's own zarr.json holds its capacity; the group's and the root's, whose inline consolidated
metadata every reader uses, hold the committed length. Publishing splices the length into text that
was prepared once, since a group can have a thousand arrays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filmstrip.store._names import METADATA
from filmstrip.store.errors import FormatError, NotARunError, RunNotFoundError

FORMAT = 1
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ArrayMetadata:
    """The text of one array's zarr.json around its length.

    Attributes
    ----------
    tail : str
        What follows the length along the step axis.
    """

    tail: str

    @classmethod
    def of(cls, document: Json) -> ArrayMetadata:
        """Return the text of an array's metadata; the length along the step axis is left out."""
        rest = {key: value for key, value in document.items() if key != "shape"}
        inner = "".join(f",{length}" for length in document["shape"][1:])
        return cls(f"{inner}],{json.dumps(rest)[1:]}")

    def text(self, length: int) -> str:
        """Return the metadata with a length along the step axis."""
        return f'{{"shape":[{length}{self.tail}'


def array_document(
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    data_type: str,
    fill: Any,
    codecs: list[Json],
    names: list[str],
    attributes: Json,
) -> Json:
    """Return an array's metadata; ``shape`` and ``chunk`` have the step axis."""
    return {
        "shape": list(shape),
        "zarr_format": 3,
        "node_type": "array",
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": {"filmstrip": attributes} if attributes else {},
        "dimension_names": names,
        "storage_transformers": [],
    }


def sharding(inner_chunk: tuple[int, ...], codecs: list[Json]) -> list[Json]:
    """Return the codec of a sharded array, its index at the end and checked."""
    configuration = {
        "chunk_shape": list(inner_chunk),
        "codecs": codecs,
        "index_codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "crc32c"},
        ],
        "index_location": "end",
    }
    return [{"name": "sharding_indexed", "configuration": configuration}]


def group_text(attributes: Json, members: Mapping[str, str]) -> str:
    """Return a group's zarr.json with the metadata of everything below, given as text."""
    metadata = ",".join(f"{json.dumps(name)}:{text}" for name, text in members.items())
    about = json.dumps({"filmstrip": attributes} if attributes else {})
    return (
        f'{{"zarr_format":3,"node_type":"group","attributes":{about},"consolidated_metadata":'
        f'{{"kind":"inline","must_understand":false,"metadata":{{{metadata}}}}}}}'
    )


def parent_groups(groups: Iterable[str]) -> list[str]:
    """Return the paths of groups that only hold other groups.

    Examples
    --------
    >>> parent_groups(["activations", "statistics/activations"])
    ['statistics']
    """
    parents = {path.rpartition("/")[0] for path in groups}
    return sorted(parents - {""})


def read_json(path: Path) -> Json | None:
    """Return a JSON document, None when there is no file."""
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise FormatError(str(path), f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise FormatError(str(path), "it is not a JSON object")
    return document


class MetadataFile:
    """A zarr.json that is parsed again only when it was replaced.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._document: Json | None = None

    def read(self) -> Json | None:
        """Return the document, the same object while the file is the same; None without a file."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)  # replaced, never in place
        if stamp != self._stamp:
            self._document = read_json(self._path)
            self._stamp = stamp
        return self._document


def members_of(document: Json, path: Path) -> tuple[Json, dict[str, Json]]:
    """Return what a group's metadata says of it, and the metadata of its arrays.

    Raises
    ------
    FormatError
        If it is not the metadata of a group of ours.
    """
    try:
        attributes = document["attributes"].get("filmstrip", {})
        return attributes, document["consolidated_metadata"]["metadata"]
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(str(path), f"its zarr.json lacks {error}") from error


def run_attributes(path: Path, file: MetadataFile | None = None) -> Json:
    """Return what a run's root says of it.

    Raises
    ------
    RunNotFoundError
        If there is nothing at the path.
    NotARunError
        If it is not a filmstrip run.
    FormatError
        If a newer filmstrip wrote it.
    """
    document = (file or MetadataFile(path / METADATA)).read()
    if document is None:
        if not path.exists():
            raise RunNotFoundError(str(path))
        reason = "it is a file" if path.is_file() else f"it has no {METADATA}"
        raise NotARunError(str(path), reason)
    described = document.get("attributes")
    attributes = described.get("filmstrip") if isinstance(described, dict) else None
    if not isinstance(attributes, dict):
        raise NotARunError(str(path), "it is a Zarr group of something else")
    version = attributes.get("format")
    if not isinstance(version, int) or version > FORMAT:
        reason = f"it has format {version}, this filmstrip reads up to {FORMAT}; upgrade it"
        raise FormatError(str(path), reason)
    return attributes
