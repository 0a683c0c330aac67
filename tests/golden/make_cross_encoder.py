"""Writes the golden scores of tests/models/test_cross_encoder.py with torch; needs 'parity'.

python tests/golden/make_cross_encoder.py
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "models"))
import tiny_cross_encoders  # noqa: E402

SETTINGS = {
    "bert": {"model_type": "bert", "labels": 1},
    "bert_two_labels": {"model_type": "bert", "labels": 2, "seed": 3},
    "xlm_roberta": {"model_type": "xlm-roberta", "labels": 1, "seed": 5},
}


def by_transformers(folder: pathlib.Path, pairs, max_length: int, batch: int = 1) -> np.ndarray:
    """Logits [pairs, labels] by transformers' own tokenizer and model, float32."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    logits = []
    for start in range(0, len(pairs), batch):
        queries, passages = zip(*pairs[start : start + batch], strict=True)
        inputs = tokenizer(
            list(queries),
            list(passages),
            truncation=True,
            max_length=max_length,
            padding=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            logits.append(model(**inputs).logits.numpy())
    return np.concatenate(logits)


def main() -> None:
    golden = {"settings": json.dumps(SETTINGS)}
    for name, settings in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = tiny_cross_encoders.write(pathlib.Path(folder), **settings)
            golden[name] = by_transformers(path, tiny_cross_encoders.pairs(40), 24)
    np.savez_compressed(HERE / "cross_encoder_tiny.npz", **golden)


if __name__ == "__main__":
    main()
