"""Training rows and runs in the formats of other tools, read and written.

    rows = interchange.read("flagembedding", "train.jsonl")
    interchange.write(rows, "st-triplet", "out.parquet")

Every reader returns `Rows`, every writer takes them (`rows.py`); runs are {query: {passage:
score}}. `FORMATS` lists all; each family has a module. `docs/interchange.md` has the fields and the
losses; `python -m nvret_jax convert --help` the names.
"""

from nvret_jax.data.interchange.formats import FORMATS, Format, find, read, write
from nvret_jax.data.interchange.rows import Builder, Rows, Texts, content_id, from_negatives
from nvret_jax.files.runs import TrecRun, read_run, write_run

__all__ = [
    "FORMATS",
    "Builder",
    "Format",
    "Rows",
    "Texts",
    "TrecRun",
    "content_id",
    "find",
    "from_negatives",
    "read",
    "read_run",
    "write",
    "write_run",
]
