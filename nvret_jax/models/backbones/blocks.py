"""What the backbones (`bert.py`, `decoder.py`, `modernbert.py`) have in common."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from nvret_jax import mesh as mesh_lib
from nvret_jax.errors import InputError
from nvret_jax.models import lora
from nvret_jax.models.attention.kernels import check_heads
from nvret_jax.models.backbones.layer import PRODUCT, Options, dropout

TABLE = "word"  # what every backbone calls its token table


def lookup(table: jax.Array, tokens_bt: jax.Array) -> jax.Array:
    """Rows of a token table [V, D] split along D over fsdp: int32 [B, T] -> float32 [B, T, D].

    The table is never gathered: tokens are sent to all of fsdp, each device reads its slice of D,
        and one all-to-all turns slices of D back into slices of the batch. That moves B·T·D
        numbers; gathering the table would move V·D (256 M for XLM-R large). The same holds for its
        gradient.
    """
    if cut := mesh_lib.cut_here("embed"):
        tokens_bt = jax.lax.all_gather(tokens_bt, cut, axis=0, tiled=True)
        rows_btd = table.at[tokens_bt].get(mode="clip")
        rows_btd = jax.lax.all_to_all(rows_btd, cut, split_axis=0, concat_axis=2, tiled=True)
        return rows_btd.astype(jnp.float32)
    if mesh_lib.manual_axes():
        return table.at[tokens_bt].get(mode="clip").astype(jnp.float32)
    embed = mesh_lib.RULES["embed"]
    batch = tuple(axis for axis in mesh_lib.RULES["batch"] if axis not in embed)
    tokens_bt = jax.reshard(tokens_bt, P(batch, None))
    rows_btd = table.at[tokens_bt].get(out_sharding=P(batch, None, embed), mode="clip")
    return jax.reshard(rows_btd.astype(jnp.float32), mesh_lib.spec("batch", None, None))


def check_tokens(tokens: int, limit: int) -> None:
    """Raises InputError where a batch is longer than the model has positions for."""
    if tokens > limit:
        raise InputError(
            f"{tokens} tokens, but this model has positions for {limit}; lower max_length"
        )


def declared_axes(model: nnx.Module) -> dict[tuple[str, str], tuple[str | None, ...]]:
    """Path -> logical axes of each weight a model has, from the `AXES` of its parts."""
    axes = {}
    for part, name in (path for path, _ in nnx.to_flat_state(nnx.state(model))):
        module = getattr(model, part)
        names = lora.axes(module.AXES, name)
        axes[part, name] = (None, *names) if part == "layers" else names
    return axes


class Backbone(nnx.Module):
    """Embeddings, stacked layers, and what follows them: from token ids to hidden states.

    A subclass names the classes of its parts and, where its layers need them, the arrays they
    share or that differ between them. Call it under `jax.set_mesh`, with arguments sharded over
    "batch".

    Attributes:
        EMBEDDINGS: called as (tokens_bt, config) -> float32 [B, T, D].
        LAYER: called as (hidden_btd, lengths_b, keys_b, shared, own, config=, options=).
    """

    EMBEDDINGS: ClassVar[Any]
    LAYER: ClassVar[Any]

    def __init__(
        self,
        config: Any,
        *,
        options: Options | None = None,
        param_dtype: Any = "float32",
        rngs: nnx.Rngs,
    ):
        self.config, self.options = config, options or Options()
        check_heads(self.options.attention, config.head_dim, windowed=self.windowed(config))
        self.embeddings = self.EMBEDDINGS(config, param_dtype=param_dtype, rngs=rngs)
        keys_l = jax.random.split(rngs.params(), config.num_hidden_layers)
        self.layers = jax.vmap(
            lambda key: self.LAYER(config, param_dtype=param_dtype, rngs=nnx.Rngs(params=key))
        )(keys_l)

    def logical_axes(self) -> dict[tuple[str, str], tuple[str | None, ...]]:
        """Path of each weight -> logical axis of each of its dimensions, as stored."""
        return declared_axes(self)

    @staticmethod
    def windowed(config: Any) -> bool:
        """Whether some layer attends within a window only."""
        return False

    def shared(self, tokens: int) -> Any:
        """Arrays that every layer reads, for texts of that many tokens."""
        return None

    def per_layer(self, tokens: int) -> Any:
        """A tree of arrays [L, …] of which each layer reads its row."""
        return None

    def last(self, hidden_btd: jax.Array) -> jax.Array:
        """What follows the last layer."""
        return hidden_btd

    def __call__(
        self,
        tokens_bt: jax.Array,
        lengths_b: jax.Array,
        *,
        dropout_keys_b: jax.Array | None = None,
    ) -> jax.Array:
        """Token vectors of right-padded sequences.

        Args:
            tokens_bt: int32 [B, T]; padding may hold any ids.
            lengths_b: int32 [B], real tokens, 1..T.
            dropout_keys_b: typed PRNG keys [B], one per example; None: no dropout.

        Returns:
            float32 [B, T, D]; finite but meaningless at padded positions.

        Raises:
            InputError: T exceeds the positions the model has (at trace time).
        """
        config, options, tokens = self.config, self.options, tokens_bt.shape[1]
        check_tokens(tokens, config.max_tokens)
        keys_b = dropout_keys_b if lora.draws(self.layers, options) else None
        with jax.named_scope("embeddings"):
            hidden_btd = self.embeddings(tokens_bt, config)
            # Layers fold in their index first; the embeddings fold in the index after the last.
            hidden_btd = dropout(hidden_btd, keys_b, config.num_hidden_layers, options.dropout)
        shared = self.shared(tokens)

        def block(hidden_btd: jax.Array, layer: Any, keys_b: Any, own: Any = None) -> jax.Array:
            return layer(hidden_btd, lengths_b, keys_b, shared, own, config=config, options=options)

        xs, remat = self.per_layer(tokens), options.remat
        return self.last(scan_layers(block, hidden_btd, self.layers, keys_b, remat=remat, xs=xs))


def scan_layers(
    block: Any,
    hidden_btd: jax.Array,
    layers: nnx.Module,
    keys_b: jax.Array | None,
    *,
    remat: str,
    xs: Any = None,
) -> jax.Array:
    """Runs `block(hidden, layer, keys[, x])` over stacked layers; each has separate dropout keys.
    `xs` holds further differences between layers, stacked. `remat` is as of `Options`; the layer
    itself sees to 'attention'.
    """
    count = jax.tree.leaves(layers)[0].shape[0]

    def step(hidden_btd: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
        layer, index, x = inputs
        own_b = keys_b
        if keys_b is not None:
            own_b = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_b, index)
        more = () if x is None else (x,)
        return block(hidden_btd, layer, own_b, *more), None

    # In a scan nothing can merge what is computed again with what was computed before. The barriers
    # that would prevent it make a TPU copy all that a layer keeps: twice the traffic to memory.
    again = functools.partial(jax.checkpoint, prevent_cse=False)
    if remat == "full":
        step = again(step)
    elif remat == "dots":
        step = again(step, policy=jax.checkpoint_policies.save_only_these_names(PRODUCT))
    elif _gathers(layers):
        # What a layer keeps must not be its gathered weights: of all layers they are the model.
        step = again(step, policy=_not_gathered)
    return jax.lax.scan(step, hidden_btd, (layers, jnp.arange(count), xs))[0]


def _gathers(layers: Any) -> bool:
    """Whether weights of these layers are gathered over the mesh as each is used."""
    names = {path[-1] for path, _ in nnx.to_flat_state(nnx.state(layers))} - set(layers.whole)
    cut = [name for name in mesh_lib.GATHERED if mesh_lib.cut_here(name)]
    return any(set(cut) & set(lora.axes(layers.AXES, name)) for name in names)


def _not_gathered(primitive: Any, *args: Any, **params: Any) -> bool:
    """A policy of `jax.checkpoint`: keep everything but what was gathered over the mesh."""
    return primitive.name != "all_gather"
