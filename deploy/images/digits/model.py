"""What holds the model: nothing of it, not even scikit-learn, is in memory before `load`."""

import ctypes
import gc
import pickle
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from .dataset import Dataset, accuracy
from .protocol import Prediction, ProtocolError, Row

ARTIFACTS = Path("/opt/model/artifacts")
MODEL_FILE = "model.joblib"
_ROWS_AT_ONCE = 256


class ModelUnreadableError(Exception):
    """The model file is missing or is not one that this server can read."""


class Predictor(Protocol):
    """A model in memory."""

    def predict(self, rows: Sequence[Row]) -> list[Prediction]: ...


class ModelSlot:
    """The place for the one model: full or empty. `load` and `unload` are idempotent.

    Calls come from several threads; the lock makes a second `load` wait for the first instead
    of reading the file again. Who predicts keeps the model alive until the answer is there.
    """

    def __init__(self, loader: Callable[[], Predictor]) -> None:
        self._loader = loader
        self._lock = threading.Lock()
        self._predictor: Predictor | None = None

    @property
    def loaded(self) -> bool:
        return self._predictor is not None

    def load(self) -> None:
        """Read the model into memory; raises `ModelUnreadableError`."""
        with self._lock:
            if self._predictor is None:
                self._predictor = self._loader()

    def unload(self) -> None:
        """Let the model go and give its memory back to the machine."""
        with self._lock:
            if self._predictor is not None:
                self._predictor = None
                give_memory_back()

    def predictor(self) -> Predictor:
        predictor = self._predictor
        if predictor is None:
            raise ProtocolError(400, "The model is not loaded.")
        return predictor


class _SklearnPredictor:
    def __init__(self, classifier: "_Classifier") -> None:
        self._classifier = classifier

    def predict(self, rows: Sequence[Row]) -> list[Prediction]:
        predictions = []
        for shares in self._classifier.predict_proba(rows):
            best = max(range(len(shares)), key=shares.__getitem__)
            label = int(self._classifier.classes_[best])
            predictions.append(Prediction(label, round(float(shares[best]), 6)))
        return predictions


class _Classifier(Protocol):
    classes_: Sequence[int]

    def predict_proba(self, rows: Sequence[Row]) -> Sequence[Sequence[float]]: ...


def load_predictor(file: Path) -> Predictor:
    """Unpickle our own model file (it is part of the image); imports scikit-learn on the way."""
    try:
        import joblib  # type: ignore[import-not-found]  # noqa: PLC0415 - loading is importing

        return _SklearnPredictor(joblib.load(file))
    except (OSError, EOFError, ValueError, ImportError, pickle.UnpicklingError) as error:
        raise ModelUnreadableError(f"The model file cannot be loaded: {error}") from error


def predict_dataset(
    predictor: Predictor, dataset: Dataset, progress: Callable[[int], None] | None = None
) -> tuple[list[Prediction], dict[str, float]]:
    """Predict every row; also `count`, and `accuracy` when the dataset knows the answers.

    `progress` gets the number of rows done, after each 256.
    """
    predictions: list[Prediction] = []
    for start in range(0, len(dataset.rows), _ROWS_AT_ONCE):
        predictions += predictor.predict(dataset.rows[start : start + _ROWS_AT_ONCE])
        if progress is not None:
            progress(len(predictions))
    figures: dict[str, float] = {"count": len(predictions)}
    if dataset.labels is not None:
        figures["accuracy"] = round(accuracy([p.label for p in predictions], dataset.labels), 6)
    return predictions, figures


def give_memory_back() -> None:
    """Free what nobody refers to; glibc keeps freed pages until it is asked to trim."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
