"""Stores keep the users, the behaviour and the lists of a service. A third kind is one file."""
