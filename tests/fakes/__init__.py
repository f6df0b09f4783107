"""Fakes of what cannot be had in a test, spoken to only through their real clients."""
