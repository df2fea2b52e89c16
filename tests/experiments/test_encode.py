"""Features of a whole set: those of the encoder, picture by picture, as rounds read them."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from densejax.active.rounds.features import open_features
from densejax.classification.pretrained import Encoder, encode, fresh, save_encoder
from densejax.data.images import standardise, to_unit
from densejax.data.vision import gratings
from experiments import encode as experiment


@pytest.fixture
def pretrained(tmp_path):
    encoder = Encoder("resnet20", 4, "cifar", (0.5, 0.4, 0.3), (0.3, 0.2, 0.25))
    variables = fresh(jax.random.key(0), encoder)
    save_encoder(tmp_path / "encoder", encoder, variables)
    return encoder, variables, tmp_path / "encoder"


def test_features_are_the_encoders_of_each_picture_alone(pretrained, tmp_path, capsys):
    encoder, variables, folder = pretrained
    config = experiment.Config(data="tiny", pretrained=str(folder), limit=20, test_limit=7, batch=8)
    found = experiment.run(config, tmp_path / "out")
    source = open_features(tmp_path / "out")
    pictures = gratings(jax.random.split(jax.random.key(0))[0], 20)
    np.testing.assert_array_equal(source.labels, pictures.labels)
    np.testing.assert_array_equal(source.images, found.arrays["train_features"])
    assert source.images.dtype == np.float32 and source.test_images.shape == (7, encoder.features)
    for row in (0, 9, 19):
        picture = standardise(
            to_unit(pictures.images[row : row + 1]), mean=encoder.mean, std=encoder.std
        )
        alone = encode(encoder, variables, picture)[0][0]
        np.testing.assert_allclose(source.images[row], alone, rtol=1e-4, atol=1e-5)
    assert "20 pictures" in capsys.readouterr().out


def test_another_encoder_is_not_written_over_the_first(pretrained, tmp_path):
    config = experiment.Config(data="tiny", pretrained=str(pretrained[2]), limit=8, test_limit=4)
    experiment.run(config, tmp_path / "out")
    with pytest.raises(ValueError, match="limit"):
        experiment.run(replace(config, limit=12), tmp_path / "out")
