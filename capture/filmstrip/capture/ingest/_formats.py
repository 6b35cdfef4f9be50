"""Formats: the only place that finds out what a path holds, and which reader opens it."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filmstrip.capture.errors import CheckpointError
from filmstrip.capture.ingest._checkpoint import Checkpoint, of_trainer

_READERS = {  # format: module, extra that it needs, name
    "safetensors": ("_safetensors", "", "safetensors file"),
    "npz": ("_npz", "", "NumPy file"),
    "pytorch": ("_pytorch", "torch", "PyTorch file"),
    "distributed": ("_distributed", "torch", "distributed checkpoint"),
    "keras": ("_keras", "tensorflow", "Keras file"),
    "tensorflow": ("_tensorflow", "tensorflow", "TensorFlow checkpoint"),
}
_KNOWN = ".pt, .pth, .bin, .ckpt, .safetensors, .keras, .h5, .npz or a TensorFlow checkpoint"
_TF_DATA = re.compile(r"(.+)\.(index|data-\d{5}-of-\d{5})")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
_INDEX = re.compile(r".+\.(safetensors|bin)\.index\.json")
_NAMES = tuple(
    f"*.{ending}"
    for ending in ("safetensors", "bin", "pt", "pth", "ckpt", "keras", "h5", "npz", "index")
)
_TRAINING = frozenset(
    {
        *("training_args", "trainer_state", "rng_state", "random_states"),
        *("sampler", "dl_state_dict"),
    }
)
_OF_A_RANK = re.compile(r"_\d+$")


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint, not opened yet.

    Attributes
    ----------
    path : Path
        As it is named to people; a folder, a file, or the prefix of several.
    form : str
        Its format.
    parts : tuple of Path
        What its reader opens.
    """

    path: Path
    form: str
    parts: tuple[Path, ...]


def find(path: Path) -> Found:
    """Find out what a path holds.

    Raises
    ------
    CheckpointError
        If there is nothing, or nothing that is known.
    """
    try:
        return _in_folder(path) if path.is_dir() else _at(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _at(path: Path) -> Found:
    prefix = _TF_DATA.fullmatch(path.name)
    prefix_path = path.with_name(prefix[1]) if prefix else path
    if prefix_path.with_name(f"{prefix_path.name}.index").is_file():
        return Found(prefix_path, "tensorflow", (prefix_path,))
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}")
    if _INDEX.fullmatch(path.name):
        return _indexed(path)
    shard = _SHARD.fullmatch(path.name)
    if shard:
        return _sharded(path, shard)
    return Found(path, _format(path), (path,))


def _format(path: Path) -> str:
    """Return the format of a file, from its first bytes; names are often wrong."""
    with path.open("rb") as file:
        head = file.read(16)
    if head[:4] == b"PK\x03\x04" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
        if "model.weights.h5" in members:
            return "keras"
        if any(name.rpartition("/")[2] in ("data.pkl", "constants.pkl") for name in members):
            return "pytorch"
        if members and all(name.endswith(".npy") for name in members):
            return "npz"
    elif head[:8] == b"\x89HDF\r\n\x1a\n":
        return "keras"
    elif head[:1] == b"\x80":  # a pickle, as PyTorch wrote before 1.6
        return "pytorch"
    elif head[8:9] == b"{":
        return "safetensors"
    if not head:
        raise CheckpointError(f"{path} is empty")
    if head[:2] == b"PK" and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} lacks its end, as if it had been cut short")
    raise CheckpointError(f"{path} is no checkpoint that is known: give {_KNOWN}")


def _indexed(index: Path) -> Found:
    """Return the shards that an index of Hugging Face names."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} names no files of weights") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which is no file beside it")
    return _complete(index, [index.parent / name for name in names])


def _sharded(path: Path, shard: re.Match[str]) -> Found:
    """Return all shards of which one was named."""
    base, _, count, suffix = shard.groups()
    names = [f"{base}-{number:05}-of-{count}{suffix}" for number in range(1, int(count) + 1)]
    return _complete(
        path.with_name(f"{base}{suffix}.index.json"), [path.with_name(name) for name in names]
    )


def _complete(index: Path, parts: Sequence[Path]) -> Found:
    missing = [part.name for part in parts if not part.is_file()]
    if missing or not parts:
        said = ", ".join(missing[:3]) or "all of it"
        raise CheckpointError(f"{index.parent}: of this checkpoint, {said} is missing")
    return Found(
        index.with_name(index.name.removesuffix(".index.json")), _format(parts[0]), tuple(parts)
    )


def _in_folder(folder: Path) -> Found:
    if (folder / ".metadata").is_file():
        return Found(folder, "distributed", (folder,))
    variables = folder / "variables" / "variables"
    if variables.with_suffix(".index").is_file():
        return Found(folder, "tensorflow", (variables,))
    files = [file for name in _NAMES for file in sorted(folder.glob(name))]
    found: dict[Path, Found] = {}
    errors: list[CheckpointError] = []
    for file in files:
        stem = _OF_A_RANK.sub("", file.stem.partition(".")[0])
        if not of_trainer(stem) and stem not in _TRAINING:
            try:
                one = _at(file)
            except CheckpointError as error:
                errors.append(error)
            else:
                found[one.path] = one
    both = {path.suffix for path in found} == {".safetensors", ".bin"}
    if both and len(found) == 2:  # the same weights twice, as some libraries write them
        found = {path: one for path, one in found.items() if path.suffix == ".safetensors"}
    if len(found) == 1:
        (one,) = found.values()
        return Found(folder, one.form, one.parts)
    if not found and errors:
        raise errors[0]
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint; in a folder there may be {_KNOWN}")
    names = ", ".join(path.name for path in list(found)[:3])
    raise CheckpointError(f"{folder} holds {len(found)} checkpoints; name them singly: {names}")


@contextlib.contextmanager
def opened(found: Found) -> Iterator[Checkpoint]:
    """Open a checkpoint; its weights can be read until the block ends.

    Raises
    ------
    CheckpointError
        If it cannot be read, or reading it needs what is not installed.
    """
    module, extra, name = _READERS[found.form]
    try:
        reader = importlib.import_module(f"filmstrip.capture.ingest.{module}")
    except ImportError as error:
        if not extra:
            raise
        raise CheckpointError(
            f"{found.path} is a {name}, and {error.name} is missing: "
            f"pip install 'filmstrip[{extra}]'"
        ) from error
    checkpoint = Checkpoint()
    with checkpoint.resources:
        with translated(found):
            reader.read(found.parts, checkpoint)
        yield checkpoint


@contextlib.contextmanager
def translated(found: Found) -> Iterator[None]:
    """Turn whatever a reader raises into one line that names the checkpoint."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{found.path} cannot be read as a {_READERS[found.form][2]}: {lines[0]}"
        ) from error
