"""Operators: what turns the neighbours of a query in a bank into an anomaly score."""
