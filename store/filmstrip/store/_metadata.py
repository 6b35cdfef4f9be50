"""Metadata: the only place that writes and reads zarr.json.

An array's own zarr.json holds its capacity; the group's and the root's, whose inline consolidated
metadata every reader uses, hold the committed length. Publishing splices the length into text that
was prepared once, since a group can have a thousand arrays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from filmstrip.store._names import METADATA
from filmstrip.store._place import LocalPlace, Place, checked_part
from filmstrip.store.errors import FormatError, NotARunError, RunNotFoundError, StoreError

FORMAT = 1
Json = dict[str, Any]

# What attributes are, where they are there; whoever reads them need not ask again.
_OF_ARRAYS: dict[str, tuple[type, ...]] = {
    "layer": (str,),
    "original": (str,),
    "dtype": (str,),
    "layout": (str,),
    "order": (int,),
    "axes": (list,),
    "varies": (list,),
}
_OF_RUNS: dict[str, tuple[type, ...]] = {
    "run_id": (str,),
    "created": (int, float),
    "rank": (int,),
    "world_size": (int,),
    "writers": (list,),
    "groups": (list,),
    "attempts": (list,),
    "metadata": (dict,),
}
_OF_ATTEMPTS: dict[str, tuple[type, ...]] = {
    "host": (str,),
    "pid": (int,),
    "time": (int, float),
    "ended": (int, float),
    "first_step": (int,),
}
MOST_RANKS = 1 << 16
"""Each is looked for, so that a lie would take long."""
_NEVER_NULL = {"rank", "world_size", "writers", "order", "axes", "varies"}
_LARGEST = {"rank": MOST_RANKS, "world_size": MOST_RANKS, "pid": (1 << 31) - 1}


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


def read_json(place: Place) -> Json | None:
    """Return a JSON document, None when there is no file.

    Raises
    ------
    FormatError
        If it is not JSON, or too large.
    """
    raw = place.read()
    if raw is None:
        return None
    try:
        document = json.loads(raw.decode())  # json itself lets half a character pass
        if (
            b"\\ud" in raw or b"\\uD" in raw
        ):  # half a character is in no name, and cannot be printed
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise FormatError(str(place), f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise FormatError(str(place), "it is not a JSON object")
    return document


class MetadataFile:
    """A zarr.json that is parsed again only when it was replaced.

    Parameters
    ----------
    place : Place
        The file.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._stamp: object | None = None
        self._document: Json | None = None

    def read(self) -> Json | None:
        """Return the document, the same object while the file is the same; None without a file."""
        stamp = self._place.stamp()
        if stamp is None:
            return None
        if stamp != self._stamp:
            self._document = read_json(self._place)
            self._stamp = stamp
        return self._document


def members_of(document: Json, where: object) -> tuple[Json, dict[str, Json]]:
    """Return what a group's metadata says of it, and the metadata of its arrays.

    Raises
    ------
    FormatError
        If it is not the metadata of a group of ours.
    """
    described, consolidated = document.get("attributes"), document.get("consolidated_metadata")
    attributes = described.get("filmstrip", {}) if isinstance(described, dict) else None
    members = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    if not isinstance(attributes, dict) or not isinstance(members, dict):
        raise FormatError(str(where), "its zarr.json is not that of a group of a run")
    for name, member in members.items():
        checked_part(name, where)
        if not isinstance(member, dict) or not isinstance(member.get("attributes"), dict):
            raise FormatError(str(where), f"its zarr.json does not describe {name!r}")
        about = member["attributes"].get("filmstrip")
        if about is None and "filmstrip" not in member["attributes"]:
            continue
        odd = _odd(about, _OF_ARRAYS, needed=("layer", "original", "dtype"))
        if odd is None and not all(isinstance(axis, int) for axis in about.get("varies", ())):
            odd = "varies"
        if odd is not None:
            raise FormatError(str(where), f"its zarr.json does not say what {name!r} is ({odd})")
    return attributes, members


def _odd(
    about: object, types: Mapping[str, tuple[type, ...]], needed: Iterable[str] = ()
) -> str | None:
    """Return the first attribute that is missing or not what it must be."""
    if not isinstance(about, dict):
        return "no object"
    for name in needed:
        if about.get(name) is None:
            return name
    for name, allowed in types.items():
        value = about.get(name)
        if value is None and not (name in about and name in _NEVER_NULL):
            continue
        if not isinstance(value, allowed) or isinstance(value, bool):
            return name
        if isinstance(value, int | float):
            limit = _LARGEST.get(name, 1 << 63)
            if not (math.isfinite(value) and 0 <= value <= limit):
                return name
    return None


def run_attributes(place: Place, file: MetadataFile | None = None) -> Json:
    """Return what a run's root says of it.

    Raises
    ------
    RunNotFoundError
        If there is nothing at the place.
    NotARunError
        If it is not a filmstrip run.
    FormatError
        If a newer filmstrip wrote it, or it is damaged.
    """
    document = (file or MetadataFile(place / METADATA)).read()
    if document is None:
        if isinstance(place, LocalPlace) and place.exists():
            reason = "it is a file" if place.path.is_file() else f"it has no {METADATA}"
            raise NotARunError(str(place), reason)
        raise RunNotFoundError(str(place))
    attributes = _ours(document)
    if attributes is None or not _names_run(attributes):
        raise NotARunError(str(place), _part_or_other(place, ours=attributes is not None))
    version = attributes.get("format")
    if not isinstance(version, int) or version > FORMAT:
        reason = f"it has format {version}, this filmstrip reads up to {FORMAT}; upgrade it"
        raise FormatError(str(place), reason)
    check_root(place, attributes)
    return attributes


def _ours(document: Json) -> Json | None:
    """Return what a document says for filmstrip, None when it says nothing."""
    described = document.get("attributes")
    attributes = described.get("filmstrip") if isinstance(described, dict) else None
    return attributes if isinstance(attributes, dict) else None


def _names_run(attributes: Json) -> bool:
    """Whether attributes are those of a root, damaged perhaps, and not of a part of a run."""
    return "format" in attributes or "run_id" in attributes


def _part_or_other(place: Place, *, ours: bool) -> str:
    """Say what a group or an array is that is no run, and which run it is a part of."""
    for folder in place.path.absolute().parents if isinstance(place, LocalPlace) else ():
        try:
            document = read_json(LocalPlace(folder) / METADATA)
        except StoreError:
            document = None
        if document is None:  # a part lies in groups only
            break
        attributes = _ours(document)
        if attributes is not None and _names_run(attributes):
            return f"it is a part of one; open {folder}"
    return (
        "it is a part of one; open the run itself"
        if ours
        else "it is a Zarr group of something else"
    )


def check_root(place: Place, attributes: Json) -> None:
    """Raise FormatError unless all that a run's root says of it is what it must be."""
    needed = ("run_id", "created", "groups", "attempts")
    odd = _odd(attributes, _OF_RUNS, needed)
    if odd is None:
        world, writers = range(attributes.get("world_size", 1)), attributes.get("writers", ())
        if not world:
            odd = "world_size"
        elif not all(type(rank) is int and rank in world for rank in writers):
            odd = "writers"
    if odd is not None:
        raise FormatError(str(place), f"its {odd} is {_shown(attributes.get(odd))}")
    for group in attributes["groups"]:
        if not isinstance(group, str):
            raise FormatError(str(place), "its list of groups is damaged")
        for part in group.split("/"):
            checked_part(part, place)
    for attempt in attributes["attempts"]:
        odd = _odd(attempt, _OF_ATTEMPTS, ("host", "pid"))
        if odd is not None:
            raise FormatError(str(place), f"its list of attempts is damaged ({odd})")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
