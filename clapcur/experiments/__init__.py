"""What a whole experiment is: its config, defaults, and the recipes of the papers."""
