"""What was done, when and with what result: MLflow runs and the model registry; the only owner of mlflow."""
