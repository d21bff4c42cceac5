"""From pictures and a form to the options of a training."""
