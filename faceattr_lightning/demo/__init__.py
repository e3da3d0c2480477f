"""The local page of ``task=demo``: a photo, its faces, and what a model says of them. Nothing here imports Lightning or
Hydra, and only `faceattr_lightning.demo.page` gradio.
"""
