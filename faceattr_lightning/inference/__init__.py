"""From a photo to the input of a trained network, and to its answer. Nothing here imports Lightning or Hydra."""
