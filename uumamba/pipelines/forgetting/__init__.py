"""Unlearning of patients of a trained model, with evidence."""
