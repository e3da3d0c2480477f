"""The networks, each a plain `torch.nn.Module`. Nothing here imports Lightning, Hydra or what training needs."""
