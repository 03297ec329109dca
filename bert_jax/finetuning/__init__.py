"""Fine-tuning: from files to results."""
