"""A small recogniser that needs no training, for tests in which its accuracy does not matter."""

import pytest

# coco_jax is imported in the fixture: jaxtyping adds its checks after it has loaded conftest files.


@pytest.fixture(scope="session")
def untrained():
    """A small CoCo with random parameters, as a run would have them."""
    import jax

    from coco_jax.data.tokenizers import Tokenizer, train_tokenizer
    from coco_jax.recognition.recognizer import Recognizer, make_predictor
    from conftest import tiny_config

    config = tiny_config("/home/me/data", text_tower__depth=1)
    words = ["juggling", "rope skipping", "swimming", "balls in the air", "a clown", "jumps"]
    model = train_tokenizer([f"{word} by a person" for word in words] * 3, 40)
    tokenizer = Tokenizer(model, config.text.length)
    config.text.trained_vocabulary = tokenizer.size
    program = make_predictor(config)
    params = program.init(jax.random.key(0)).params
    return Recognizer(config, tokenizer, program, params, config.data.name)
