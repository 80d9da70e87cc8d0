"""One Prefect flow per kind of experiment; a flow passes artifacts, never tensors, and reads like the pipeline."""
