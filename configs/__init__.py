"""Recipes: one YAML per published row."""
