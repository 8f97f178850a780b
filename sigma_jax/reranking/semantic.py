"""Semantic match: how near the text of an item is to the instruction.

A pre-trained sentence encoder gives both a vector. It knows words that no training instruction has:
"my cat is hungry" is near to cat food. An item's group says what kind of thing it is. If one item
of the group is near to the instruction, the others serve it too, and the user has favourites among
them.

    semantic_group_match(i) = relative(largest cosine(instruction, text of an item of i's group))
    semantic_match(i) = relative(cosine(instruction, text of i)) - semantic_group_match(i)
    relative(c) = (c - largest) / (largest - tenth)

A name of a thing has a cosine of 0.8 to the right group and of 0.4 to the tenth, and a need of 0.4
and 0.3. So a cosine is compared with those of the nearest and of the tenth group (RANK).

The groups are the categories of the catalogue, or else the items of one first code. A few texts
stand for a group: those that are the least like one another (k-center; Gonzalez 1985, Clustering to
minimize the maximum intercluster distance). What people say when they want things of a group stands
for it too, where the user brings such knowledge.

Axes: B requests, N candidates, I items, G groups, T texts of groups, E dimensions of the encoder.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from sigma_jax.data.vectors import unit_rows
from sigma_jax.index.device_index import exact_einsum
from sigma_jax.schema import Links
from sigma_jax.shapes import in_eighths, power_of_two

TEXTS_OF_GROUP = 16  # that stand for a group
TEXTS_OF_KNOWLEDGE = 64  # that stand for a group besides, the strongest
ITEMS_READ = 512  # of a group at most, evenly spaced, that these texts are chosen from
LEAST_GROUPS, LEAST_TEXTS = 32, 256  # of the arrays
RANK = 10  # of the group that a cosine is compared with
SEMANTIC_FEATURES = ("semantic_match", "semantic_group_match")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SemanticArrays:
    """Text vectors of items and groups, on the device."""

    items: Float[Array, "I E"]
    lengths: Float32[Array, " I"]  # of the items' vectors
    texts: Float32[Array, "T E"]  # of groups, unit length
    group_of_text: Int32[Array, " T"]  # ascending
    group: Int32[Array, " I"]  # of each item
    num_groups: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def make(
        cls,
        vectors: Float[Array, "I E"],
        group: Int[np.ndarray, " I"],
        knowledge: tuple[Float32[np.ndarray, "K E"], Int[np.ndarray, " K"]] | None = None,
    ) -> SemanticArrays:
        """The arrays for the text vectors of all items.

        Args:
          vectors: of the items' texts. An item without text has zeros and stands for no group.
          group: the number of each item's group; -1: none, which counts as one group.
          knowledge: vectors of what people say, unit length, strongest first, and the group that
            each speaks of. A group has the first TEXTS_OF_KNOWLEDGE of them.
        """
        group = np.asarray(group, np.int32) + 1
        width = vectors.shape[1]
        # On the host: on a device each group's number of items would be a program of its own.
        rows_of_items = np.asarray(vectors)
        said, spoken_of = knowledge or (np.zeros((0, width), np.float32), np.zeros(0, np.int32))
        num_groups = int(max(group.max(), spoken_of.max(initial=-1) + 1)) + 1
        said_of = Links.from_edges(spoken_of + 1, np.arange(len(said)), num_groups)
        has_text = (rows_of_items != 0).any(axis=1)
        order = np.argsort(group, kind="stable")
        order = order[has_text[order]] if has_text.any() else order[:1]
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        texts, group_of_text = [], []
        for items in np.split(order, starts[1:]):
            step = -(-len(items) // ITEMS_READ)
            of_group = unit_rows(np.asarray(rows_of_items[items[::step]], np.float32))
            of_group = of_group[distant_rows(of_group, TEXTS_OF_GROUP)]
            rows = said_of.of(group[items[0]])[:TEXTS_OF_KNOWLEDGE]
            texts.append(np.concatenate([of_group, said[rows]]))
            group_of_text += [group[items[0]]] * len(texts[-1])
        # Sizes in steps: a catalogue with a few more items or categories needs no new programs.
        # No group has the added texts, which segment_max leaves out.
        num_groups = power_of_two(max(num_groups, LEAST_GROUPS))
        added = in_eighths(max(len(group_of_text), LEAST_TEXTS)) - len(group_of_text)
        return cls(
            vectors,
            jnp.maximum(jnp.linalg.norm(vectors, axis=-1), 1e-9),
            jnp.asarray(np.pad(np.concatenate(texts), ((0, added), (0, 0)))),
            jnp.asarray([*group_of_text, *[num_groups] * added], jnp.int32),
            jnp.asarray(group),
            num_groups,
        )

    def scores(
        self, queries: Float[Array, "B E"], items: Int32[Array, "B N"]
    ) -> Float32[Array, "B N 2"]:
        """SEMANTIC_FEATURES of each candidate. Item -1 gets the scores of item 0.

        Args:
          queries: vectors of the instructions, unit length.
        """
        items = jnp.maximum(items, 0)
        if items.shape[1] * 2 > len(self.items):  # one product is cheaper than gathering vectors
            of_all = exact_einsum("BE,IE->BI", queries, self.items)
            products = jnp.take_along_axis(of_all, items, axis=1)
        else:
            products = exact_einsum("BE,BNE->BN", queries, self.items[items])
        of_texts = exact_einsum("BE,TE->TB", queries, self.texts)
        of_groups = jax.ops.segment_max(
            of_texts, self.group_of_text, self.num_groups, indices_are_sorted=True
        )
        nearest = jax.lax.top_k(of_groups.T, min(RANK, self.num_groups))[0]
        # A group without texts has -inf, such as that of items without a category.
        last = jnp.where(jnp.isfinite(nearest), nearest, jnp.inf).min(axis=1)[:, None, None]
        largest = nearest[:, 0, None, None]
        of_group = jnp.take_along_axis(of_groups.T, self.group[items], axis=1)
        of_group = jnp.where(jnp.isfinite(of_group), of_group, last[..., 0])
        cosines = jnp.stack([products / self.lengths[items], of_group], axis=-1)
        relative = (cosines - largest) / jnp.maximum(largest - last, 1e-3)
        return relative - jnp.stack([relative[..., 1], jnp.zeros(items.shape)], axis=-1)


def distant_rows(vectors: Float32[np.ndarray, "n E"], count: int) -> Int[np.ndarray, " k"]:
    """At most `count` rows, none equal to another: each is the least like those before it.

    Args:
      vectors: unit length. The first row is the one most like their mean.
    """
    chosen = [int(np.argmax(vectors @ vectors.mean(axis=0)))]
    nearest = vectors @ vectors[chosen[0]]
    while len(chosen) < count and nearest.min() < 1 - 1e-5:
        chosen.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, vectors @ vectors[chosen[-1]])
    return np.array(chosen)
