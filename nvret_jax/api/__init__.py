"""The Python interface: the content of `import nvret_jax as nv`, except whole runs.

import nvret_jax as nv

data = nv.load_dataset("pairs:faq.csv")
student = nv.Encoder.from_pretrained("all-MiniLM-L6-v2")
negatives = nv.mine(data, teacher=student)
trained = nv.train(student, data, negatives)
nv.evaluate(trained, data, "test").metrics
nv.export(trained, "my-model")
"""

from nvret_jax.api.encoder import Encoder
from nvret_jax.api.mine import mine
from nvret_jax.api.train import train
from nvret_jax.data.dataset import Dataset
from nvret_jax.data.load import load_dataset
from nvret_jax.errors import InputError
from nvret_jax.evaluation.retrieval import Evaluation, evaluate
from nvret_jax.export.sentence_transformers import export
from nvret_jax.mesh import make_mesh
from nvret_jax.mining.negatives import Negatives
from nvret_jax.mining.options import Exclude
from nvret_jax.mining.options import Options as Mining
from nvret_jax.mining.rules import Rule
from nvret_jax.models.lora import LoraConfig
from nvret_jax.search.index.backend import search
from nvret_jax.search.rankers.bm25 import Bm25Ranker
from nvret_jax.training.loss.options import Loss

__all__ = [
    "Bm25Ranker",
    "Dataset",
    "Encoder",
    "Evaluation",
    "Exclude",
    "InputError",
    "LoraConfig",
    "Loss",
    "Mining",
    "Negatives",
    "Rule",
    "evaluate",
    "export",
    "load_dataset",
    "make_mesh",
    "mine",
    "search",
    "train",
]
