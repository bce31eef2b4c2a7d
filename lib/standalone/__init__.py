"""A third host, over diffusers: the command line, headless runs, the demo, and what the tests train on."""
