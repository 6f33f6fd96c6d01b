"""Estimators that keep scikit-learn's rules."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from numformer.nn import Context
from numformer.optim import AdamW, cosine, decay_groups
from numformer.sklearn.network import Network, NumberTokens, TextTokens

Array = NDArray[Any]

_FEWEST = 17
"""Sequences that are read at once: products of fewer rows add up in another order, and an answer would depend on who
is asked with it."""


def is_text(X: Any) -> bool:
    """Whether X is a sequence of str, and not rows of numbers."""
    if isinstance(X, str) or not hasattr(X, "__len__") or getattr(X, "ndim", 1) != 1 or not len(X):
        return False
    return any(isinstance(text, str) for text in X)


class _Transformer(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share."""

    def __init__(
        self,
        *,
        width: int = 32,
        heads: int = 4,
        layers: int = 1,
        context: int = 256,
        dropout: float = 0.0,
        epochs: int = 10,
        min_steps: int = 300,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.01,
        random_state: Any = None,
    ) -> None:
        self.width = width
        self.heads = heads
        self.layers = layers
        self.context = context
        self.dropout = dropout
        self.epochs = epochs
        self.min_steps = min_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.non_deterministic = False
        return tags

    _numeric = False

    def _learn_from(self, X: Any, y: Any) -> tuple[Any, Array]:
        """Return what `fit` was given, checked: texts as a list, or rows of numbers as float64, and a column."""
        self._text = is_text(X)
        if self._text:
            X = self._texts(X)
            check_consistent_length(X, y)
        else:
            X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=self._numeric)
        return X, column_or_1d(y, warn=True)

    def _asked(self, X: Any) -> Any:
        """Return samples to answer for, checked: they are of the kind of those of `fit`."""
        if is_text(X):
            if not self._text:
                raise ValueError(f"{type(self).__name__}: X must be rows of numbers, as those of fit, got texts")
            return self._texts(X)
        if self._text:
            raise ValueError(f"{type(self).__name__}: X must be texts, as those of fit, got {type(X).__name__}")
        return validate_data(self, X, reset=False, dtype=np.float64)

    def _texts(self, X: Any) -> list[str]:
        for i, text in enumerate(X):
            if not isinstance(text, str):
                raise TypeError(
                    f"{type(self).__name__}: X must hold nothing but texts, got {type(text).__name__} at {i}"
                )
        return list(X)

    def _train(self, X: Any, targets: Array, outputs: int, *, classes: bool) -> None:
        """Make a network and train it."""
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1))
        rng = np.random.default_rng(seed)
        if self._text:
            tokens: Any = TextTokens(self.context, self.width, rng)
        else:
            self._mean, self._scale = X.mean(0), X.std(0)
            self._scale[self._scale < 1e-12 * np.maximum(1.0, np.abs(self._mean))] = 1.0
            tokens = NumberTokens(X.shape[1], self.width, rng)
        sizes: dict[str, Any] = {"width": self.width, "heads": self.heads, "layers": self.layers}
        network = Network(tokens, outputs, classes=classes, dropout=self.dropout, rng=rng, **sizes)
        packed = network.tokens.sequences(self._scaled(X))
        optimizer = AdamW(decay_groups(network.parameters(), self.weight_decay), clip_norm=1.0)
        batch = min(self.batch_size, len(packed))
        per_epoch = math.ceil(len(packed) / batch)
        steps = max(self.epochs * per_epoch, self.min_steps)
        rate = cosine(self.learning_rate, steps=steps, warmup=min(20, steps // 5))
        order = np.empty(0, np.int64)
        for step in range(steps):
            if not len(order):
                order = rng.permutation(len(packed))
            chosen, order = order[:batch], order[batch:]
            network.zero_grad()
            _, backward = network.loss((packed.take(chosen), targets[chosen]), ctx=Context(seed=seed, step=step))
            backward()
            optimizer.step(rate(step))
        network.zero_grad()
        for parameter in network.parameters():
            parameter.grad = None
        self.network_ = network
        self.n_steps_ = steps

    def _scaled(self, X: Any) -> Any:
        return X if self._text else (X - self._mean) / self._scale

    def _outputs(self, X: Any) -> Array:
        """Return what the network says of each sample, (samples, outputs), in float64."""
        check_is_fitted(self)
        X = self._asked(X)
        packed = self.network_.tokens.sequences(self._scaled(X))
        answers = []
        for first in range(0, len(packed), 256):
            part = packed[first : first + 256]
            count = len(part)
            if count < _FEWEST:
                part = part.take(np.resize(np.arange(count), _FEWEST))
            answers.append(self.network_.infer(part)[:count])
        return np.concatenate(answers).astype(np.float64)


class TransformerClassifier(ClassifierMixin, _Transformer):  # type: ignore[misc]
    """A classifier of texts, or of rows of numbers, by a small Transformer encoder.

    Texts are read as bytes of UTF-8, so there is no vocabulary to learn and no language it cannot read. Of a row of
    numbers each feature is a token, centred and scaled.

    Parameters
    ----------
    width, heads, layers : int
        Sizes of the encoder; `heads` divides `width`.
    context : int
        Bytes of a text that are read, less one; what comes after is ignored.
    dropout : float
        On the residual branches.
    epochs : int
        Passes over the samples.
    min_steps : int
        Steps that are made at least, however few samples there are.
    batch_size : int
        Samples a step.
    learning_rate : float
        Of AdamW; it rises for 20 steps and falls along half a cosine.
    weight_decay : float
        Of the weights of maps.
    random_state : int, RandomState or None
        Draws weights, batches and dropout. An int gives the same bits each time.

    Attributes
    ----------
    classes_ : array
        The labels.
    network_ : Module
        What was trained.
    n_steps_ : int
        Steps that were made.
    n_features_in_, feature_names_in_
        Of rows of numbers, as scikit-learn has them.

    Examples
    --------
    >>> from numformer.sklearn import TransformerClassifier
    >>> model = TransformerClassifier(random_state=0, min_steps=60)
    >>> model.fit(["good", "so good", "bad", "too bad"] * 4, [1, 1, 0, 0] * 4).predict(["good", "bad"])
    array([1, 0])
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from samples and their labels.

        Parameters
        ----------
        X : sequence of str, or (samples, features) numbers
        y : (samples,) labels

        Returns
        -------
        self
        """
        X, y = self._learn_from(X, y)
        check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        self._train(X, targets, len(self.classes_), classes=True)
        return self

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, (samples, classes)."""
        outputs = self._outputs(X)
        odds = np.exp(outputs - outputs.max(1, keepdims=True))
        probabilities: Array = odds / odds.sum(1, keepdims=True)
        return probabilities

    def predict(self, X: Any) -> Array:
        """Return the most probable label of each sample."""
        outputs = self._outputs(X)
        labels: Array = self.classes_[outputs.argmax(1)]
        return labels


class TransformerRegressor(RegressorMixin, _Transformer):  # type: ignore[misc]
    """Predicts a number for texts, or for rows of numbers, by a small Transformer encoder.

    The parameters are those of :class:`TransformerClassifier`; the loss is the squared error of the scaled target.

    Attributes
    ----------
    network_ : Module
        What was trained.
    n_steps_ : int
        Steps that were made.
    n_features_in_, feature_names_in_
        Of rows of numbers, as scikit-learn has them.

    Examples
    --------
    >>> from numformer.sklearn import TransformerRegressor
    >>> model = TransformerRegressor(random_state=0, min_steps=100)
    >>> model.fit(["a" * n for n in range(20)], range(20)).predict(["aaaa"]).round().shape
    (1,)
    """

    _numeric = True

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from samples and their numbers.

        Parameters
        ----------
        X : sequence of str, or (samples, features) numbers
        y : (samples,) numbers

        Returns
        -------
        self
        """
        X, y = self._learn_from(X, y)
        y = y.astype(np.float64)
        if not np.isfinite(y).all():
            raise ValueError(f"{type(self).__name__}: y must be finite, got NaN or infinity")
        self._target_mean, self._target_scale = float(y.mean()), float(y.std()) or 1.0
        targets = ((y - self._target_mean) / self._target_scale).astype(np.float32)
        self._train(X, targets, 1, classes=False)
        return self

    def predict(self, X: Any) -> Array:
        """Return the number of each sample."""
        return self._outputs(X)[:, 0] * self._target_scale + self._target_mean
