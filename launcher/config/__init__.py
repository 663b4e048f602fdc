"""What the user said: variables, layers, model files, arguments, each with its origin."""
