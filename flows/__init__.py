"""One Prefect flow per experiment; a flow passes artifacts, never tensors, and its body reads like the story."""
