"""New files of a shop whose first files were read by a mapping have the same shape."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from mapping_shapes import lines
from tiny_run import tiny_run

from sigma_jax.configs import refresh as configs
from sigma_jax.data.mapping.inspect import inspect_folder
from sigma_jax.data.sources.added import AddedFiles
from sigma_jax.prepare import prepare_workdir
from sigma_jax.refresh import NewFiles, added_files, data_settings, write_new_data
from sigma_jax.refreshing.config import RefreshConfig
from sigma_jax.refreshing.lineage import Lineage
from sigma_jax.refreshing.rows import NoNewRowsError
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import PreparedData

START = datetime(2024, 3, 1, 8)


def goods(*numbers: int) -> str:
    rows = [f"A{n};Thing {n};kind {n % 3};{n},50" for n in numbers]
    return lines("SKU;Product Name;Category;Price", *rows)


def order_lines(first_day: int, days: int, item: int = 0) -> list[tuple[str, str, str, str]]:
    """(order, customer, item, time) of one order of two items a day, with days above 12."""
    found = []
    for day in range(first_day, first_day + days):
        when = (START + timedelta(days=day)).strftime("%d/%m/%Y %H:%M")
        for one in (item or day % 5 + 1, (day + 1) % 5 + 1):
            found.append((f"{100 + day}", f"C{day % 4}", f"A{one}", when))
    return found


def seconds(day: int) -> int:
    return int((START + timedelta(days=day) - datetime(1970, 1, 1)).total_seconds())


def one_file(rows) -> str:
    return lines("Order ID;Customer ID;SKU;Order Date", *(";".join(row) for row in rows))


def settings(**changes) -> RefreshConfig:
    fields = {name: value for name, value in configs.get_config().items() if name != "mesh"}
    return to_dataclass(RefreshConfig, fields | changes)


def prepared(files, tmp_path) -> Lineage:
    """A workdir with the data of foreign `files` (text by name), mapped as proposed."""
    folder, workdir = tmp_path / "files", tmp_path / "run"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    inspect_folder(folder, overwrite=False)
    changes = {"data.text_encoder": "", "data.themes.calendar": False}
    prepare_workdir(tiny_run(folder, **changes), workdir)
    for path in folder.iterdir():  # nothing of them is read again
        path.unlink()
    return Lineage(workdir)


def refreshed(lineage, given: NewFiles, fields: RefreshConfig) -> PreparedData:
    """The data of a refresh with new files."""
    added, folder = added_files(lineage, fields), lineage.folder(lineage.next_name)
    sums = dict.fromkeys(added.paths(given.paths), "")
    write_new_data(lineage, folder, given, added, sums, fields, None)
    return PreparedData.load(folder / "data")


@pytest.fixture
def shop(tmp_path):
    files = {"goods.csv": goods(1, 2, 3, 4, 5), "orders.csv": one_file(order_lines(0, 24))}
    return prepared(files, tmp_path)


def test_new_rows_and_items_are_read_by_the_mapping_that_the_workdir_keeps(shop, tmp_path):
    (tmp_path / "today.csv").write_text(one_file(order_lines(23, 3, item=6)))
    (tmp_path / "goods.csv").write_text(goods(5, 6))
    given = NewFiles(str(tmp_path / "today.csv"), str(tmp_path / "goods.csv"))
    before = PreparedData.load(shop.workdir / "data")
    after = refreshed(shop, given, settings(late_rows="drop"))
    assert after.catalogue.ids([5]) == ["A6"]
    assert after.catalogue.texts([5]) == [
        '{"title": "Thing 6", "category": "kind 0", "Price": "6.50"}'
    ]
    assert len(after.histories.item) == len(before.histories.item) + 5  # one is known
    assert after.histories.time.max() == seconds(25)
    assert (shop.folder("0001") / "data" / "mapping.yaml").exists()


def test_files_of_our_columns_are_read_without_the_mapping(shop, tmp_path):
    rows = ["C1,A1,2024-05-01,9", "C2,A2,2024-05-01,9"]
    (tmp_path / "today.csv").write_text(lines("user_id,item_id,timestamp,session_id", *rows))
    given = NewFiles(str(tmp_path / "today.csv"))
    with pytest.raises(ValueError, match=r"interactions.columns.user_id: no column 'Customer ID'"):
        refreshed(shop, given, settings())
    after = refreshed(shop, given, settings(uses_mapping=False))
    assert (after.histories.time == 1714521600).sum() == 2


def test_a_file_without_rows_has_nothing_new(shop, tmp_path):
    given = NewFiles(str(tmp_path / "today.csv"))
    (tmp_path / "today.csv").write_text(one_file([]))
    with pytest.raises(NoNewRowsError, match=r"today.csv has no rows, so the recommender stays"):
        refreshed(shop, given, settings())
    (tmp_path / "today.csv").write_text(one_file(order_lines(20, 2)))
    with pytest.raises(NoNewRowsError, match=r"no row after the known log \(4 rows are known"):
        refreshed(shop, given, settings())
    (tmp_path / "today.csv").write_text(one_file(order_lines(24, 1)))
    assert len(refreshed(shop, given, settings()).histories.item) == 50


def test_joined_files_lie_beside_the_new_rows_and_are_part_of_the_recipe(tmp_path):
    def two_files(rows):
        baskets = dict.fromkeys(f"{order};{who};{when}" for order, who, _, when in rows)
        return (
            lines("order_id;line;product_id", *(f"{row[0]};1;{row[2]}" for row in rows)),
            lines("order_id;customer_id;order_date", *baskets),
        )

    names = ("lines.csv", "orders.csv")
    files = dict(zip(names, two_files(order_lines(0, 24)), strict=True))
    lineage = prepared(files, tmp_path)
    today = tmp_path / "today"
    today.mkdir()
    given = NewFiles(str(today / "new.csv"))
    rows, orders = two_files(order_lines(24, 2))
    (today / "new.csv").write_text(rows)
    with pytest.raises(ValueError, match=r"today/orders.csv does not exist"):
        refreshed(lineage, given, settings())
    (today / "orders.csv").write_text(orders)
    paths = added_files(lineage, settings()).paths(given.paths)
    assert paths == {
        "interactions": str(today / "new.csv"),
        "interactions 2": str(today / "orders.csv"),
    }
    after = refreshed(lineage, given, settings())
    times = np.sort(after.histories.time)[-4:].tolist()
    assert times == [seconds(24)] * 2 + [seconds(25)] * 2
    assert len(after.histories.item) == 52


def test_times_that_are_sums_of_gaps_cannot_go_on(tmp_path):
    (tmp_path / "mapping.yaml").write_text(
        "interactions: {file: a.csv, elapsed: {user: u, order: n, gap: g, unit: days}, "
        "columns: {user_id: u, item_id: i, timestamp: elapsed}}\n"
    )
    added = AddedFiles.of(tmp_path, settings().columns, " > ")
    with pytest.raises(ValueError, match="interactions: elapsed counts times from the first row"):
        added.open(None, "interactions", "b.csv")


def test_use_of_the_mapping_is_part_of_the_recipe():
    assert data_settings(settings()) != data_settings(settings(uses_mapping=False))
