"""The user's settings: variables, layers, model files and arguments, each with its origin."""
