"""Routes of items: the catalogue by pages, states, categories."""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from sigma_jax.serving.api.context import PathId, Reader, Tenant, Writer
from sigma_jax.serving.api.lines import described_lines, lines_of
from sigma_jax.serving.api.models import (
    LONGEST_ID,
    CatalogueItem,
    CatalogueItems,
    Categories,
    Category,
    ItemDetails,
    State,
    StateRow,
    StoredStates,
    Text,
)
from sigma_jax.serving.engine import CatalogueSnapshot
from sigma_jax.serving.stores.base import ItemState

router = APIRouter(prefix="/v1", tags=["items"])


@router.get("/items")
def list_items(
    tenant: Reader,
    after: Annotated[Text, Query(max_length=LONGEST_ID, description="An item id.")] = "",
    count: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> CatalogueItems:
    """Items of the active version, removed ones too, in its order behind `after`."""
    snapshot = tenant.service.engine.current
    first = number_of(snapshot, after) + 1 if after else 0
    last = min(first + count, len(snapshot.version))
    return CatalogueItems(items=described(snapshot, np.arange(first, last)))


@router.get("/items/states")
def get_states(tenant: Reader) -> dict[str, State]:
    """The states of all items that have one, by item id."""
    states = tenant.service.store.states()
    return {item: shown_state(state) for item, state in states.items()}


@router.put("/items/states", openapi_extra=described_lines(StateRow))
async def put_states(tenant: Writer, request: Request) -> StoredStates:
    """Replaces states from JSON lines: {"item_id": "...", "stock": 0}."""
    rows = await lines_of(request, StateRow)
    states = {
        row.item_id: ItemState(row.hidden, row.stock, row.expires)
        for row in rows
        if tenant.service.knows(row.item_id)
    }
    unknown = sum(not tenant.service.knows(row.item_id) for row in rows)
    if states:
        await run_in_threadpool(tenant.service.store.put_states, states)
        tenant.service.forget_settings()
    return StoredStates(stored=len(states), unknown_items=unknown)


@router.get("/items/{item_id}")
def get_item(tenant: Reader, item_id: PathId) -> ItemDetails:
    """An item of the catalogue, and its state."""
    snapshot = tenant.service.engine.current
    [item] = described(snapshot, np.array([number_of(snapshot, item_id)]))
    state = state_of(tenant, item_id)
    is_shown = item.is_active and state.is_shown(time.time())
    return ItemDetails(**item.model_dump(), state=shown_state(state), is_shown=is_shown)


@router.get("/items/{item_id}/state")
def get_state(tenant: Reader, item_id: PathId) -> State:
    """Whether an item is shown, and until when."""
    number_of(tenant.service.engine.current, item_id)
    return shown_state(state_of(tenant, item_id))


@router.put("/items/{item_id}/state")
def put_state(tenant: Writer, item_id: PathId, body: State) -> State:
    """Hides an item, or sets its stock or its end. Lists that are stored lose it at once."""
    number_of(tenant.service.engine.current, item_id)
    state = ItemState(body.hidden, body.stock, body.expires)
    tenant.service.store.put_states({item_id: state})
    tenant.service.forget_settings()
    return body


@router.get("/categories")
def get_categories(tenant: Reader) -> Categories:
    """All categories with their numbers of items, those with most items first."""
    version = tenant.service.engine.current.version
    category = np.asarray(version.catalogue.category)
    is_active = version.is_active[: len(category)] & (category >= 0)
    names = version.catalogue.categories.to_pylist()
    counts = np.bincount(category[is_active], minlength=len(names))
    return Categories(
        categories=[
            Category(name=names[number], items=int(counts[number]))
            for number in np.argsort(-counts, kind="stable").tolist()
        ]
    )


def number_of(snapshot: CatalogueSnapshot, item_id: str) -> int:
    """The number of an item. HTTPException 404 if the catalogue does not have it."""
    number = snapshot.parser.item_index.find(item_id)
    if number is None:
        raise HTTPException(404, f"there is no item {item_id!r} in the catalogue")
    return number


def described(snapshot: CatalogueSnapshot, numbers: np.ndarray) -> list[CatalogueItem]:
    """Items by their numbers [n], as the API describes them."""
    catalogue = snapshot.version.catalogue
    category = np.asarray(catalogue.category)[numbers].tolist()
    is_active = snapshot.version.is_active[numbers].tolist()
    ids, titles = catalogue.ids(numbers), catalogue.titles(numbers)
    return [
        CatalogueItem(
            item_id=ids[place],
            title=titles[place],
            category="" if category[place] < 0 else catalogue.categories[category[place]].as_py(),
            is_active=is_active[place],
        )
        for place in range(len(numbers))
    ]


def state_of(tenant: Tenant, item_id: str) -> ItemState:
    """The state of an item; one without a state is shown."""
    return tenant.service.store.states().get(item_id, ItemState())


def shown_state(state: ItemState) -> State:
    """A state as the API shows it."""
    return State(hidden=state.is_hidden, stock=state.stock, expires=state.expires)
