"""The SQL of BigQuery for the expressions of this package, for those who run it there themselves.

No step of this package runs on BigQuery. A test compiles the expressions of checks, splits, pairs
and counts to its SQL, so that they stay free of what only DuckDB and Spark have.
"""

from __future__ import annotations

import ibis.expr.types as ir
import sqlglot
from ibis.backends.sql.compilers import bigquery


def compile_sql(table: ir.Table) -> str:
    """The query of `table` in BigQuery's SQL, which reads back as one statement.

    Raises:
      ibis.common.exceptions.OperationNotDefinedError: BigQuery has no such operation.
    """
    text = bigquery.compiler.to_sqlglot(table).sql("bigquery")
    sqlglot.parse_one(text, dialect="bigquery")
    return text
