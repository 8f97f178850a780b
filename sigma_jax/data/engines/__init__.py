"""Engines besides DuckDB: the same Ibis expressions on Spark, and their SQL for BigQuery."""
