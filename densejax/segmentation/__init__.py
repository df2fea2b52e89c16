"""Dense labelling of volumes: the task of learning from windows, and predicting whole volumes."""
