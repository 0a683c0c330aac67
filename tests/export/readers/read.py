"""One reader's reading of all exports, in a process that has that reader's versions.

    PYTHONPATH=… python read.py jobs.json out.npz

jobs.json lists exports and texts; out.npz gets what each way of reading gave, as
"<job>|<way>|<query or document>", as "<job>|<way>|error" the error of one that failed, and as
"<job>|<way>|warning" the words of one that makes another model of the folder. The ways are those
that the installed programs offer: `SentenceTransformer`, `MultiVectorEncoder` or PyLate's `ColBERT`
for token vectors, and transformers with the pooling done here.
"""

import importlib.util
import json
import logging
import pathlib
import sys

import numpy as np
import sentence_transformers
import torch
import transformers

torch.set_num_threads(1)
KINDS = ("query", "document")
PYLATE = importlib.util.find_spec("pylate") is not None


class Warned(logging.Handler):
    """Keeps what a reader says of a folder whose modules it does not look at."""

    found = None

    def emit(self, record):
        if "Creating a new one" in record.getMessage():
            self.found = record.getMessage()


def by_sentence_transformers(job, texts):
    model = sentence_transformers.SentenceTransformer(
        job["folder"], device="cpu", truncate_dim=job.get("truncate_dim")
    )
    if "adapter" in job:
        model.load_adapter(job["adapter"])
    for kind in KINDS:
        together = model.encode(texts, prompt_name=kind)
        alone = np.concatenate([model.encode([text], prompt_name=kind) for text in texts])
        yield kind, np.stack([together, alone])


def by_tokens(job, texts):
    if PYLATE:
        from pylate import models

        model = models.ColBERT(job["folder"], device="cpu")
        for kind in KINDS:
            yield kind, np.concatenate(model.encode(texts, is_query=kind == "query"))
        return
    model = sentence_transformers.MultiVectorEncoder(job["folder"], device="cpu")
    for kind, encode in zip(KINDS, (model.encode_query, model.encode_document), strict=True):
        yield kind, np.concatenate([np.asarray(vectors) for vectors in encode(texts)])


def by_transformers(job, texts):
    folder = pathlib.Path(job["folder"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    model, info = transformers.AutoModel.from_pretrained(str(folder), output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info.get(problem), (problem, info[problem])
    if "adapter" in job:
        import peft

        model = peft.PeftModel.from_pretrained(model, job["adapter"])
    model.eval()
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    shared = json.loads((folder / "config_sentence_transformers.json").read_text())
    normalize = "Normalize" in (folder / "modules.json").read_text()
    for kind in KINDS:
        prompt = shared["prompts"][kind]
        first = 0
        if prompt and not pooling["include_prompt"]:
            ids = tokenizer(prompt)["input_ids"]
            first = len(ids) - (ids[-1] in tokenizer.all_special_ids)
        rows = []
        for text in texts:
            batch = tokenizer(prompt + text, truncation=True, return_tensors="pt")
            with torch.no_grad():
                hidden = model(**batch).last_hidden_state[0].float()
            if pooling["pooling_mode_cls_token"]:
                row = hidden[first]
            elif pooling["pooling_mode_lasttoken"]:
                row = hidden[-1]
            else:
                row = hidden[first:].mean(0)
            rows.append(torch.nn.functional.normalize(row, dim=0) if normalize else row)
        yield kind, torch.stack(rows).numpy()[:, : job.get("truncate_dim")]


def ways(job):
    """The ways in which this process can try to read a job."""
    if job["late"]:
        if PYLATE or hasattr(sentence_transformers, "MultiVectorEncoder"):
            return {"tokens": by_tokens}
        return {"sentence-transformers": by_sentence_transformers}
    found = {}
    if not PYLATE:
        if "adapter" not in job or hasattr(
            sentence_transformers.SentenceTransformer, "load_adapter"
        ):
            found["sentence-transformers"] = by_sentence_transformers
        if not job["dense"]:
            found["transformers"] = by_transformers
    return found


def main(jobs_path, out_path):
    work = json.loads(pathlib.Path(jobs_path).read_text())
    out = {
        "versions": np.array(
            f"sentence-transformers {sentence_transformers.__version__}, "
            f"transformers {transformers.__version__}"
        )
    }
    if PYLATE:
        import pylate

        out["versions"] = np.array(f"PyLate {pylate.__version__}, {out['versions']}")
    warned = Warned()
    logging.getLogger("sentence_transformers").addHandler(warned)
    for job in work["jobs"]:
        for way, read in ways(job).items():
            at = f"{job['name']}|{way}"
            warned.found = None
            try:
                for kind, vectors in read(job, work["texts"]):
                    out[f"{at}|{kind}"] = vectors
            except Exception as error:  # what a reader cannot read is part of what is asked
                out[f"{at}|error"] = np.array(f"{type(error).__name__}: {error}")
            if warned.found:
                out[f"{at}|warning"] = np.array(warned.found)
    np.savez(out_path, **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
