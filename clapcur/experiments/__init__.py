"""Configs of whole experiments: fields, defaults, and the recipes of papers."""
