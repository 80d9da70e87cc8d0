"""The demo's corpus: everyday sounds and their captions, generated from a seed."""
