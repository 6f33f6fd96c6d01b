"""scikit-learn's own checks of an estimator, and what it does not check: texts."""

import pickle

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

from numformer.sklearn import TransformerClassifier, TransformerRegressor  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

QUICK = {"width": 16, "heads": 2, "min_steps": 80, "epochs": 4, "learning_rate": 1e-2}


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([TransformerClassifier(**QUICK), TransformerRegressor(**QUICK)])
def test_their_checks(estimator, check):
    check(estimator)


def _texts(rng, count):
    words = ["red", "blue", "green", "dog", "cat", "house", "ünïcode", "猫"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 7))) for _ in range(count)]
    return texts, np.array(["has" if "dog" in text or "猫" in text else "none" for text in texts])


def test_texts_are_classified(rng):
    texts, labels = _texts(rng, 240)
    model = TransformerClassifier(random_state=0).fit(texts[:200], labels[:200])
    assert model.classes_.tolist() == ["has", "none"]
    assert model.score(texts[200:], labels[200:]) >= 0.9
    probabilities = model.predict_proba(texts[200:])
    np.testing.assert_allclose(probabilities.sum(1), 1)
    # Whoever is asked about beside it, a text gets the same answer.
    assert (model.predict_proba(texts[203:204]) == probabilities[3]).all()
    assert (model.predict_proba(np.array(texts[200:], object)) == probabilities).all()
    again = pickle.loads(pickle.dumps(model))
    assert (again.predict_proba(texts[200:]) == probabilities).all()
    assert (clone(model).fit(texts[:200], labels[:200]).predict_proba(texts[200:]) == probabilities).all()
    assert (model.predict(["", "dog " * 500]) != "").all()


def test_texts_have_numbers(rng):
    texts, _ = _texts(rng, 240)
    numbers = np.array([10.0 + 3 * text.count("dog") for text in texts])
    model = TransformerRegressor(random_state=0).fit(texts[:200], numbers[:200])
    assert model.score(texts[200:], numbers[200:]) >= 0.7


def test_within_their_tools(rng):
    texts, labels = _texts(rng, 60)
    quick = TransformerClassifier(width=8, heads=1, min_steps=20, epochs=1, random_state=1)
    search = GridSearchCV(quick, {"layers": [1, 2]}, cv=2, error_score="raise").fit(texts, labels)
    assert search.best_params_["layers"] in (1, 2)
    lower = FunctionTransformer(lambda xs: [x.lower() for x in xs])
    assert len(cross_val_score(make_pipeline(lower, quick), texts, labels, cv=3, error_score="raise")) == 3


def test_what_is_refused():
    model = TransformerClassifier(**QUICK)
    with pytest.raises(TypeError, match="nothing but texts, got int at 1"):
        model.fit(["a", 3], [0, 1])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(["a", "b"], [0, 1, 1])
    model.set_params(min_steps=2).fit(["a", "b"], [0, 1])
    with pytest.raises(ValueError, match="X must be texts"):
        model.predict(np.ones((2, 2)))
    model.fit(np.ones((4, 2)), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="X must be rows of numbers"):
        model.predict(["a"])
    with pytest.raises(ValueError, match="heads must divide width"):
        TransformerClassifier(width=8, heads=3).fit(["a", "b"], [0, 1])
