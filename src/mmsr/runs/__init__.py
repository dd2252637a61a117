"""Runs of the notebooks: papermill, manifests, comparisons, trainings on many processes, the agent of a run."""
