"""Drawings of what the documentation shows, made from real runs."""
