"""Photos and prompts as arrays: numpy and Pillow only."""
