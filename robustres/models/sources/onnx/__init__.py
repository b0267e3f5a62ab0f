"""ONNX files, converted operator by operator according to the specification; nothing in a file is executed."""
