"""Benchmark suites: methods, data sets and seeds; their records, tables and report pages."""
