"""Rankings scored, printed as a table, and written as JSON and as a page."""
