"""Datasets on disk: a CSV file, or a folder of them, read in the order of their names.

The first line names the columns: `pixel_0` to `pixel_63` (row by row, 0 to 16), and `label`
when the answers are known. The file comes from whoever mounted the dataset, so a fault in it is
a sentence with file and line, without the cell's content.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .protocol import PIXELS, Row

PIXEL_COLUMNS = tuple(f"pixel_{index}" for index in range(PIXELS))
LABEL_COLUMN = "label"
MAX_DATASET_ROWS = 100_000


class DatasetError(Exception):
    """The dataset is not there, cannot be read, or is not made of digits."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """All rows, and the labels when every file has them (else None)."""

    rows: list[Row]
    labels: list[int] | None


def read_dataset(path: Path) -> Dataset:
    """Read a CSV file or a folder of CSV files; raises `DatasetError`."""
    rows: list[Row] = []
    labels: list[int] = []
    try:
        for file in _files(path):
            for row, label in _read_file(file):
                rows.append(row)
                if label is not None:
                    labels.append(label)
                if len(rows) > MAX_DATASET_ROWS:
                    raise DatasetError(f"The dataset has more than {MAX_DATASET_ROWS} rows.")
    except (OSError, ValueError, csv.Error) as error:  # ValueError: a NUL in the path, not UTF-8
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DatasetError(f"The dataset cannot be read: {reason}.") from None
    if not rows:
        raise DatasetError("The dataset has no rows.")
    return Dataset(rows, labels if len(labels) == len(rows) else None)


def accuracy(predicted: list[int], labels: list[int]) -> float:
    """Return the share of right answers, 0 to 1."""
    right = sum(1 for guess, label in zip(predicted, labels, strict=True) if guess == label)
    return right / len(labels)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DatasetError(f"There is no dataset at {str(path)[:200]!r}.")
    files = sorted(path.glob("*.csv"))
    if not files:
        raise DatasetError("The dataset's folder holds no .csv file.")
    return files


def _read_file(file: Path) -> Iterator[tuple[Row, int | None]]:
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = set(PIXEL_COLUMNS) - set(reader.fieldnames or ())
        if missing:
            raise DatasetError(f"{file.name} has no columns pixel_0 to pixel_{PIXELS - 1}.")
        for record in reader:
            where = f"{file.name} line {reader.line_num}"
            row = [_pixel(record[column], column, where) for column in PIXEL_COLUMNS]
            yield row, _label(record.get(LABEL_COLUMN), where)


def _pixel(cell: str | None, column: str, where: str) -> float:
    try:
        number = float(cell or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DatasetError(f"{where}: {column} is not a number.")
    return number


def _label(cell: str | None, where: str) -> int | None:
    if cell is None or not cell.strip():
        return None
    try:
        return int(cell)
    except ValueError:
        raise DatasetError(f"{where}: {LABEL_COLUMN} is not a whole number.") from None
