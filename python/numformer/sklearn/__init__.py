"""Estimators for scikit-learn: Transformers that classify or predict numbers, from texts or from rows of numbers.

Needs scikit-learn, which numformer's extra "sklearn" brings.
"""

from numformer.sklearn.estimators import TransformerClassifier, TransformerRegressor

__all__ = ["TransformerClassifier", "TransformerRegressor"]
