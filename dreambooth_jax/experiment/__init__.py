"""One run of DreamBooth and what else can be done with one: parts, training, results, modes."""
