"""From a trained model to a task or a world that it was not trained for."""
