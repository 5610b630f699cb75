"""Takes a trained model out of the suite: weights with a model card, and ONNX."""
