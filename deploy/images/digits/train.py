"""Train the digits classifier at build time: `python3 -m digits.train --target FOLDER`.

scikit-learn's digits (1,797 pictures of 8 x 8, Optical Recognition of Handwritten Digits) are
split once and for all into 1,247 to train on and 550 held out. Four hundred trees answer as well
as forty here; there are so many so that having the model in memory costs memory.
"""

import argparse
import csv
import json
from pathlib import Path

import joblib  # type: ignore[import-not-found]
import sklearn  # type: ignore[import-not-found]
from sklearn.datasets import load_digits  # type: ignore[import-not-found]
from sklearn.ensemble import ExtraTreesClassifier  # type: ignore[import-not-found]
from sklearn.model_selection import train_test_split  # type: ignore[import-not-found]

from .dataset import LABEL_COLUMN, PIXEL_COLUMNS
from .model import MODEL_FILE

SEED = 0
HELD_OUT_ROWS = 550
TREES = 400
WORST_ACCURACY = 0.95


def train(target: Path) -> None:
    """Write the model, the held-out digits and the figures below `target`."""
    digits = load_digits()
    train_x, held_x, train_y, held_y = train_test_split(
        digits.data,
        digits.target,
        test_size=HELD_OUT_ROWS,
        random_state=SEED,
        stratify=digits.target,
    )
    classifier = ExtraTreesClassifier(n_estimators=TREES, random_state=SEED).fit(train_x, train_y)
    measured = float(classifier.score(held_x, held_y))
    if measured < WORST_ACCURACY:
        raise SystemExit(f"accuracy {measured:.3f} is below {WORST_ACCURACY}: not shipping this")

    target.mkdir(parents=True, exist_ok=True)
    joblib.dump(classifier, target / MODEL_FILE)
    held_out = target / "held_out"
    held_out.mkdir(exist_ok=True)
    with (held_out / "held_out.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*PIXEL_COLUMNS, LABEL_COLUMN])
        for pixels, label in zip(held_x, held_y, strict=True):
            writer.writerow([*(f"{value:g}" for value in pixels), int(label)])
    meta = {
        "accuracy": round(measured, 6),
        "held_out_rows": len(held_y),
        "train_rows": len(train_y),
        "seed": SEED,
        "trees": TREES,
        "scikit_learn": sklearn.__version__,
    }
    (target / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(meta))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digits classifier.")
    parser.add_argument("--target", type=Path, required=True)
    train(parser.parse_args().target)


if __name__ == "__main__":
    main()
