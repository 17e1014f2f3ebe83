"""The stored form of a pruned model: one safetensors file. Nothing in it is executed or trusted.

Metadata: `format`, `config` (the plain model's, JSON), `matrices` (JSON, see `_Entry`), `sha256` of all the rest.
Tensors: `<parameter>` unchanged, or as int8 with `<parameter>|scales`. A pruned matrix has `<parameter>|values`, for
int8 `|scales`, and the arrays of its `PositionCode`: `|table`, `|states`, `|positions`. There is one scale for each
row: the upper half of a float32. A tokenizer file is `tokenizer|<name>`, its UTF-8 bytes compressed by zlib.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from emmental.errors import UserError
from emmental.export.position_code import PositionCode, decode_positions, encode_positions

FORMAT = "emmental sparse package 1"
VALUE_TYPES = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
)
"""Files of a tokenizer that a package may hold."""
LARGEST_TOKENIZER_FILE = 1 << 26
"""Most bytes of such a file; one of 250,000 words has 1.7e7."""
MOST_WEIGHTS = 1 << 31
"""Most weights of a package, counted dense; BERT-large has 3.4e8."""


@dataclass(frozen=True)
class StoredMatrix:
    """The non-zeros of a matrix.

    Attributes:
        shape: (rows, columns).
        positions: (m,) int64, ascending, row-major indices.
        values: (m,) float32, float16 or int8.
        scales: (rows,) float32 that int8 values are multiplied by; None for the others.
    """

    shape: tuple[int, int]
    positions: np.ndarray
    values: np.ndarray
    scales: np.ndarray | None = None

    def weights(self) -> np.ndarray:
        """The non-zeros as (m,) float32."""
        if self.scales is None:
            return self.values.astype(np.float32)
        return self.values * self.scales[self.positions // self.shape[1]]

    def dense(self) -> np.ndarray:
        """The matrix, (rows, columns) float32."""
        matrix = np.zeros(self.shape, dtype=np.float32)
        matrix.reshape(-1)[self.positions] = self.weights()
        return matrix


@dataclass(frozen=True)
class Package:
    """What a package holds.

    Attributes:
        config: of the plain model, as in its config.json.
        matrices: parameter name -> pruned matrix.
        tensors: parameter name -> array, float32 or float16, or (int8 values, float32 scale of each row).
        tokenizer: name of a file of the tokenizer -> its text; empty if none was stored.
    """

    config: dict[str, Any]
    matrices: dict[str, StoredMatrix]
    tensors: dict[str, np.ndarray | tuple[np.ndarray, np.ndarray]]
    tokenizer: dict[str, str] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """Parameter name -> `tensors` as float32 arrays."""
        return {
            name: (value[0] * value[1][:, None] if isinstance(value, tuple) else value).astype(np.float32)
            for name, value in self.tensors.items()
        }


@dataclass(frozen=True)
class _Entry:
    """A matrix in the metadata."""

    name: str
    rows: int
    columns: int
    nonzeros: int
    kind: str
    symbols: int


_TOKENIZER = "tokenizer|"


def quantize_rows(values: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 with one scale a row: value = scale * integer in [-127, 127].

    Args:
        values: (m,) float32.
        rows: (m,) row of each value.
        count: number of rows.

    Returns:
        (m,) int8, (count,) float32 scales: the smallest bfloat16 from max abs / 127 up; 0 for a row without values.
    """
    largest = np.zeros(count, dtype=np.float32)
    np.maximum.at(largest, rows, np.abs(values))
    exact = (largest / np.float32(127)).astype(np.float32)
    scales = _from_upper_half(((exact.view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)).astype(np.uint16))
    of_value = np.where(scales > 0, scales, np.float32(1))[rows]
    return np.clip(np.rint(values / of_value), -127, 127).astype(np.int8), scales


def write_package(path: str | Path, package: Package) -> None:
    """Write the file. `path` is temporary: the caller renames it."""
    tensors: dict[str, np.ndarray] = {}
    entries = []
    for name, matrix in package.matrices.items():
        code = encode_positions(matrix.positions, matrix.shape[0] * matrix.shape[1])
        entries.append(asdict(_Entry(name, *matrix.shape, len(matrix.positions), code.kind, code.symbols)))
        parts = {"values": matrix.values, "table": code.table, "states": code.states, "positions": code.data}
        if matrix.scales is not None:
            parts["scales"] = _upper_half(matrix.scales)
        # Empty arrays are not written; the reader creates them again.
        tensors |= {f"{name}|{part}": array for part, array in parts.items() if array.size}
    for name, value in package.tensors.items():
        if isinstance(value, tuple):
            tensors |= {name: value[0], f"{name}|scales": _upper_half(value[1])}
        else:
            tensors[name] = value
    for name, text in package.tokenizer.items():
        tensors[f"{_TOKENIZER}{name}"] = np.frombuffer(zlib.compress(text.encode(), 9), dtype=np.uint8)
    texts = {"format": FORMAT, "config": _compact(package.config), "matrices": _compact(entries)}
    save_file(tensors, path, metadata={**texts, "sha256": _digest(texts, tensors)})


def read_package(path: str | Path) -> Package:
    """Read a package and check all of it. Sizes are checked before memory of that size is allocated.

    Raises:
        UserError: the file is missing, not a package, or damaged; one line that names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; a package that emmental.export.storage wrote is accepted")
    try:
        texts, tensors = _read_file(path)
        checksum = texts.pop("sha256", None)
        if checksum != _digest(texts, tensors):
            raise UserError("its checksum differs")
        config = _parsed(texts, "config")
        if not isinstance(config, dict):
            raise UserError("its config is not a JSON object")
        return _take_apart(config, _parsed(texts, "matrices"), tensors)
    except UserError as error:
        raise UserError(f"{path} is not a package, or is damaged: {' '.join(str(error).split())[:300]}") from error


def _read_file(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The texts and arrays of the file, unchecked."""
    try:
        with safe_open(path, framework="numpy") as file:
            texts = dict(file.metadata() or {})
            if texts.get("format") != FORMAT:
                raise UserError(f"its format is not {FORMAT!r}")
            return texts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a dtype that NumPy lacks
        raise UserError(str(error) or type(error).__name__) from error


def _parsed(texts: Mapping[str, str], name: str) -> Any:
    try:
        return json.loads(texts.get(name, ""))
    except (ValueError, RecursionError) as error:
        raise UserError(f"its {name} is not JSON ({error})") from error


def is_package(path: str | Path) -> bool:
    """Whether the file claims to be a package. Nothing else of it is checked."""
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError, ValueError):
        return False


def array_sizes(path: str | Path) -> dict[str, int]:
    """Array name -> bytes in the file, for a package that has been read."""
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118 - no mapping


def _take_apart(config: dict[str, Any], listed: object, tensors: dict[str, np.ndarray]) -> Package:
    left = dict(tensors)
    entries = [_checked_entry(entry) for entry in listed] if isinstance(listed, list) else None
    if entries is None or len({entry.name for entry in entries}) != len(entries):
        raise UserError("its list of matrices is missing, or names one twice")
    if sum(entry.rows * entry.columns for entry in entries) > MOST_WEIGHTS:
        raise UserError(f"it claims more than {MOST_WEIGHTS} weights")
    matrices = {entry.name: _take_matrix(entry, left) for entry in entries}
    tokenizer = {name: _take_text(left, f"{_TOKENIZER}{name}") for name in TOKENIZER_FILES}
    plain: dict[str, np.ndarray | tuple[np.ndarray, np.ndarray]] = {}
    for name in [name for name in left if "|" not in name]:
        value = left.pop(name)
        if value.dtype == np.int8:
            if value.ndim != 2:
                raise UserError(f"{name} is int8 but not a matrix")
            plain[name] = value, _take_scales(left, name, len(value))
        elif value.dtype in (np.float32, np.float16):
            plain[name] = value
        else:
            raise UserError(f"{name} has dtype {value.dtype}")
    if left or set(plain) & set(matrices):
        raise UserError(f"it holds {next(iter(left), 'a matrix twice')}, which is not expected")
    return Package(config, matrices, plain, {name: text for name, text in tokenizer.items() if text is not None})


def _take_text(left: dict[str, np.ndarray], name: str) -> str | None:
    if name not in left:
        return None
    data = left.pop(name)
    if data.ndim != 1 or data.dtype != np.uint8:
        raise UserError(f"{name} is not compressed text")
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data.tobytes(), LARGEST_TOKENIZER_FILE)
        if not stream.eof or stream.unused_data:
            raise UserError(f"{name} is cut off, or larger than {LARGEST_TOKENIZER_FILE} bytes")
        return text.decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not compressed text ({error})") from error


def _checked_entry(entry: object) -> _Entry:
    fields = {"name": str, "rows": int, "columns": int, "nonzeros": int, "kind": str, "symbols": int}
    if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != fields:
        raise UserError("its list of matrices is damaged")
    entry = _Entry(**entry)
    sizes = (entry.rows, entry.columns, entry.nonzeros, entry.symbols)
    if not all(0 <= size <= MOST_WEIGHTS for size in sizes) or 0 in sizes[:2]:
        raise UserError(f"{entry.name} claims sizes {sizes}")
    return entry


def _take_matrix(entry: _Entry, left: dict[str, np.ndarray]) -> StoredMatrix:
    def take(part: str, *dtypes: type) -> np.ndarray:
        array = left.pop(f"{entry.name}|{part}", np.empty(0, dtypes[0]))
        if array.ndim != 1 or array.dtype not in dtypes:
            raise UserError(f"{entry.name}|{part} is a {array.ndim}-dimensional array of {array.dtype}")
        return array

    values = take("values", *VALUE_TYPES.values())
    if len(values) != entry.nonzeros:
        raise UserError(f"{entry.name} has {len(values)} values for {entry.nonzeros} non-zeros")
    word = np.uint8 if entry.kind == "bitmap" else np.uint16
    arrays = take("table", np.uint16), take("states", np.uint32), take("positions", word)
    positions = decode_positions(
        PositionCode(entry.kind, entry.symbols, *arrays), entry.nonzeros, entry.rows * entry.columns
    )
    scales = _take_scales(left, entry.name, entry.rows) if values.dtype == np.int8 else None
    return StoredMatrix((entry.rows, entry.columns), positions, values, scales)


def _take_scales(left: dict[str, np.ndarray], name: str, rows: int) -> np.ndarray:
    scales = left.pop(f"{name}|scales", np.empty(0))
    if scales.dtype != np.uint16 or scales.shape != (rows,):
        raise UserError(f"{name}|scales do not have {rows} entries")
    scales = _from_upper_half(scales)
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise UserError(f"{name}|scales must be finite and not negative")
    return scales


def _upper_half(scales: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(scales).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def _from_upper_half(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _digest(texts: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over every text and array with its name, dtype and shape, in the order of the names."""
    digest = hashlib.sha256(_compact(sorted(texts.items())).encode())
    for name, array in sorted(tensors.items()):
        digest.update(_compact([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
