"""Tables from files of any shape: a mapping file says how they are read; `spec.py` has its keys."""
