"""ONNX files, read operator by operator by their specification; nothing in a file is executed."""
