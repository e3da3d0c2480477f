"""Trained models for other programs: ONNX files and their int8 versions."""
