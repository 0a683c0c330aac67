"""The data that a run reads: the splits for training and evaluation, each source once."""

from __future__ import annotations

from nvret_jax.data.dataset import Dataset
from nvret_jax.data.held_out import hold_out
from nvret_jax.data.load import load_dataset
from nvret_jax.data.options import Data
from nvret_jax.data.subset import subset


def read_wanted(
    data: Data, read: dict[str, Dataset], *, trains: bool, evaluates: bool, download: bool
) -> dict[str, Dataset]:
    """The data sets for training and evaluation; one data set if both have the same source.

    Args:
        data: the options.
        read: whole data sets that were read before; new ones are added.
        trains: whether the training split is wanted, with the dev split if there is one or if one
            is held out.
        evaluates: whether the test split is wanted.
        download: whether the network may be used.

    Returns:
        source -> its data set, with the wanted splits.

    Raises:
        InputError: as `load_dataset`, or a split does not exist.
    """
    wanted: dict[str, list[str]] = {}
    if data.train and trains:
        wanted.setdefault(data.train, []).append(data.train_split)
    if data.test and evaluates:
        wanted.setdefault(data.test, []).append(data.test_split)
    loaded = {}
    for spec, splits in wanted.items():
        if spec not in read:
            whole = load_dataset(
                spec, allow_empty=data.allow_empty, missing=data.missing, download=download
            )
            lacks_dev = trains and data.dev_split and data.dev_split not in whole.qrels
            if spec == data.train and lacks_dev and data.dev_share:
                whole = hold_out(whole, data.train_split, data.dev_split, data.dev_share)
            read[spec] = whole
        whole = read[spec]
        if spec == data.train and data.dev_split in whole.qrels:
            splits = [*splits, data.dev_split]
        for split in splits:
            whole.split_qrels(split)  # names the existing splits if one is missing
        loaded[spec] = subset(
            whole,
            list(dict.fromkeys(splits)),
            max_queries=data.max_queries,
            max_passages=data.max_passages,
        )
    return loaded
