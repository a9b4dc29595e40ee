"""Tables, plots and pages, made from record files alone."""
