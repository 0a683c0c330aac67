"""Writes the golden embeddings of tests/models with torch; needs the extra 'parity'.

    python tests/golden/make_models.py

models_tiny.npz    random BERT and XLM-R models of tests/models/tiny_models.py, by transformers
models_minilm.npz  all-MiniLM-L6-v2 on texts of this file, by sentence-transformers
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import sentence_transformers

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "models"))
import tiny_models  # noqa: E402

from nvret_jax.models.pretrained.resolve import DEFAULT_MODEL, resolve  # noqa: E402

SETTINGS = {
    "bert": {"model_type": "bert"},
    "bert_cls_tanh": {
        "model_type": "bert",
        "pooling": "cls",
        "normalize": False,
        "hidden_act": "gelu_new",
        "seed": 3,
    },
    "xlm_roberta": {"model_type": "xlm-roberta", "seed": 5},
}
TEXTS = [
    "",
    "What is a wing?",
    "Der Flügel eines Flugzeugs erzeugt Auftrieb.",
    "A hard negative is a passage that looks relevant and is not.",
    "北京 and Zürich, naïve façades; 3.14159 → π 🙂",
    " ".join(f"word{i}" for i in range(40)),
    " ".join(["Heat flows from a hot body to a cold one, and never by itself the other way."] * 9),
    " ".join(["This text is longer than the limit of the model and is cut."] * 40),
]


def main() -> None:
    tiny = {"settings": json.dumps(SETTINGS)}
    for name, settings in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            tiny_models.write(pathlib.Path(folder), **settings)
            model = sentence_transformers.SentenceTransformer(folder, device="cpu")
            tiny[name] = model.encode(tiny_models.texts(40))
    np.savez_compressed(HERE / "models_tiny.npz", **tiny)
    model = sentence_transformers.SentenceTransformer(str(resolve(DEFAULT_MODEL)), device="cpu")
    np.savez_compressed(
        HERE / "models_minilm.npz", texts=json.dumps(TEXTS), emb_nd=model.encode(TEXTS)
    )


if __name__ == "__main__":
    main()
