"""A database, and `read(path)`: the rows of a file as a reader gives them."""

import pytest

from sigma_jax.data import database, readers


@pytest.fixture(scope="package")
def con(tmp_path_factory):
    with database.open_database(tmp_path_factory.mktemp("database"), "300MB", 1) as con:
        yield con


@pytest.fixture(scope="package")
def read(con):
    def read(path):
        opened = readers.open_table(con, str(path))
        rows = con.to_pyarrow(opened.table).to_pylist()
        assert len(rows) == sum(part.num_rows for part in opened.parts)
        return rows

    return read


@pytest.fixture(scope="package")
def refused(read):
    """The message about a file that is refused: one line that begins with its path."""

    def refused(path):
        with pytest.raises(ValueError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(str(path)) and "\n" not in message
        return message.removeprefix(str(path))

    return refused


@pytest.fixture(scope="package")
def notes(con):
    return lambda path: readers.open_table(con, str(path)).notes
