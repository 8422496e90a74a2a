"""The science of the radiograph; neither Celery nor Redis."""
