"""A web page over a folder of runs: watches, starts, stops and compares them; imports no jax.

    python -m dreambooth_jax.studio runs/ --open

A run is a process of its own that the page starts and signals; the page reads what runs write. A
program that initialises an accelerator keeps it from a run, so whatever needs jax is asked of a
child process (`settings`, and the main command itself).
"""
