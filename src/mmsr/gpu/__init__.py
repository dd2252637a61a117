"""What training takes on a GPU: arithmetic before, measurement after."""
