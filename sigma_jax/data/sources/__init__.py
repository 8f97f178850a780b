"""Where tables come from; another source is one file with a `read(con, config) -> Tables`."""
