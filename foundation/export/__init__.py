"""Export of trained models: safetensors weights with a model card, and ONNX graphs."""
