"""Questions about what made what: trace, impact, pools, collection."""
