"""Parts of a run: base model, subjects, class images, drawing, working directory."""
