# What type checkers and editors see in the place of names that are found when they are used.
from nvret_jax import config as config
from nvret_jax.api import Bm25Ranker as Bm25Ranker
from nvret_jax.api import Dataset as Dataset
from nvret_jax.api import Encoder as Encoder
from nvret_jax.api import Evaluation as Evaluation
from nvret_jax.api import Exclude as Exclude
from nvret_jax.api import InputError as InputError
from nvret_jax.api import LoraConfig as LoraConfig
from nvret_jax.api import Loss as Loss
from nvret_jax.api import Mining as Mining
from nvret_jax.api import Negatives as Negatives
from nvret_jax.api import Rule as Rule
from nvret_jax.api import evaluate as evaluate
from nvret_jax.api import export as export
from nvret_jax.api import load_dataset as load_dataset
from nvret_jax.api import make_mesh as make_mesh
from nvret_jax.api import mine as mine
from nvret_jax.api import search as search
from nvret_jax.api import train as train
from nvret_jax.pipeline import Result as Result
from nvret_jax.pipeline import run as run

__version__: str
