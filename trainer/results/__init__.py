"""The files of a run: logs, samples, model card and the Hub."""
