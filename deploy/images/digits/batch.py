"""The digits model as a one-shot job: `python3 -m digits.batch --dataset PATH [--output FILE]`.

Standard output: progress lines, and as its last line the answer, one JSON object of the same
shape as the server's. Exit code: 0 done, 2 the dataset or the output cannot be used (standard
error says why in one sentence), 143 stopped by SIGTERM.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType

from . import protocol
from .dataset import DatasetError, read_dataset
from .model import ARTIFACTS, MODEL_FILE, ModelUnreadableError, load_predictor, predict_dataset

_UNUSABLE = 2
_STOPPED = 128 + signal.SIGTERM


def run(dataset_path: Path, model_file: Path, output: Path | None) -> None:
    """Predict the whole dataset, print the answer, and write it to `output` when it is given."""
    dataset = read_dataset(dataset_path)
    total = len(dataset.rows)
    print(f"loading the model for {total} rows", flush=True)
    predictor = load_predictor(model_file)
    predictions, figures = predict_dataset(
        predictor, dataset, lambda done: print(f"predicted {done}/{total}", flush=True)
    )
    request = protocol.InferRequest([], str(dataset_path), None, protocol.OUTPUTS)
    answer = json.dumps(protocol.infer_response(predictions, request, figures))
    if output is not None:
        # Whoever looks at the file sees all of it or none.
        partial = output.with_name(f".{output.name}.partial")
        partial.write_text(answer + "\n", encoding="utf-8")
        partial.replace(output)
    print(answer, flush=True)


def main() -> None:
    # As PID 1 an unhandled SIGTERM is ignored, so it is handled before anything slow begins.
    signal.signal(signal.SIGTERM, _stop)
    parser = argparse.ArgumentParser(description="Predict a whole dataset, once.")
    parser.add_argument("--dataset", type=Path, default=Path("/data"), help="default: /data")
    parser.add_argument("--output", type=Path, help="also write the answer to this file")
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS)
    options = parser.parse_args()
    try:
        run(options.dataset, options.artifacts / MODEL_FILE, options.output)
    except (DatasetError, ModelUnreadableError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(_UNUSABLE)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(_STOPPED)


if __name__ == "__main__":
    main()
