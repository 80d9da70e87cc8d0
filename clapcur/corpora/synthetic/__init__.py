"""The demo's corpus: everyday sounds and their captions, made from a seed."""
