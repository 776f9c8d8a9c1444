"""Programs that show Fedloom at work, such as `python -m examples.quickstart`."""
