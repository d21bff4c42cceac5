"""Tasks to transfer to, from the world that the bases were pre-trained on."""
