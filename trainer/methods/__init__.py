"""The training methods: what each one trains and the files it saves."""
