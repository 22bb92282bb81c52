"""One train step's loss and gradients against PyTorch's autograd: same weights, batch, noise, t."""

import jax
import numpy as np
import pytest

from dreambooth_jax import families, pipeline, train, weights
from dreambooth_jax.adapt import FULL
from dreambooth_jax.diffusion import loss

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import cascades  # noqa: E402 (with the others)
import latents  # noqa: E402 (only with torch)

PROMPTS = ["a zib dog", "a dog"]
LAMBDA = 0.7


def channels_first(x) -> "torch.Tensor":
    return torch.from_numpy(np.array(x)).movedim(-1, 1)


def batch_of(stage: pipeline.Stage) -> dict[str, np.ndarray]:
    """Three photos and two class images of noise; a latent's spread, and sizes where told."""
    rng = np.random.default_rng(4)
    shape = (5, *stage.sample_shape)
    batch = {
        "mean": rng.normal(size=shape).astype(np.float32),
        "prompt": np.array([0, 0, 0, 1, 1], np.int32),
        "is_prior": np.array([False, False, False, True, True]),
    }
    if stage.codec.is_latent:
        batch["std"] = rng.uniform(0.01, 0.1, shape).astype(np.float32)
    if stage.denoiser.sized:
        told = [[30, 40, 0, 5, 16, 16], [20, 16, 2, 0, 16, 16], [16, 16, 0, 0, 16, 16]]
        batch["sizes"] = np.array(told + told[2:] * 2, np.float32)
    return batch


def ours(stage, flat, batch):
    """Loss, its parts, gradients by key of the file, and what was drawn."""
    recipe = train.Recipe(seed=0, prior_loss_weight=LAMBDA)
    trainable, frozen = FULL.init(flat, [("vae/.*", False), (".*", True)])

    @jax.jit
    def step(trainable):
        drawn = train.draw(stage, recipe, batch, 3)
        rows = {**drawn, **stage.tokens(PROMPTS, keep="zib"), "prompt": batch["prompt"]}
        rows |= {"sizes": batch["sizes"]} if "sizes" in batch else {}
        rows["weights"] = loss.row_weights(batch["is_prior"], LAMBDA)
        found = train.gradients(
            trainable,
            {"weights": frozen},
            rows,
            recipe=recipe,
            stage=stage,
            adapter=FULL,
        )
        return found, drawn

    (value, parts, grads), drawn = step(trainable)
    by_key = {}
    for path, grad in grads.items():
        part, _, rest = path.partition("/")
        turned = weights.turned(rest, np.asarray(grad), to_file=True)
        by_key[part, weights.key_of(rest).removeprefix("text_model.")] = turned
    return float(value), parts, by_key, drawn


def theirs(pipe, drawn, batch, tokens):
    """The same by autograd, written down from equation 2 of the paper."""
    noising = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    x0, noise = channels_first(drawn["x0"]), channels_first(drawn["noise"])
    t = torch.from_numpy(np.array(drawn["t"])).long()
    prompt = torch.from_numpy(batch["prompt"]).long()
    ids = {name: torch.from_numpy(value).long() for name, value in tokens.items()}
    added = {}
    if "ids_2" in ids:
        first = pipe.text_encoder(ids["ids"], output_hidden_states=True).hidden_states[-2]
        second = pipe.text_encoder_2(ids["ids_2"], output_hidden_states=True)
        states = torch.cat([first, second.hidden_states[-2]], -1)
        sizes = torch.from_numpy(batch["sizes"])
        added = {"text_embeds": second.text_embeds[prompt], "time_ids": sizes}
        added = {"added_cond_kwargs": added}
    elif not hasattr(pipe, "vae"):
        states = pipe.text_encoder(ids["ids"], attention_mask=ids["mask"])[0]
    else:
        states = pipe.text_encoder(ids["ids"])[0]
    xt = noising.add_noise(x0, noise, t)
    output = pipe.unet(xt, t, states[prompt], **added).sample[:, : x0.shape[1]]
    v = noising.config.prediction_type == "v_prediction"
    target = noising.get_velocity(x0, noise, t) if v else noise
    square = ((output - target) ** 2).mean((1, 2, 3))
    is_prior = torch.from_numpy(batch["is_prior"])
    subject, prior = square[~is_prior].mean(), square[is_prior].mean()
    value = subject + LAMBDA * prior
    value.backward()
    grads = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for key, leaf in getattr(pipe, part, torch.nn.Module()).named_parameters():
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            grads[part, key.removeprefix("text_model.")] = gradient.numpy()
    return value.item(), subject.item(), prior.item(), grads


@pytest.mark.parametrize("model", [*latents.VARIANTS, "if"])
def test_loss_and_gradients_are_theirs(model, tmp_path):
    if model == "if":
        one_level = {
            "block_out_channels": [16],
            "cross_attention_dim": 64,
            "down_block_types": ["SimpleCrossAttnDownBlock2D"],
            "up_block_types": ["SimpleCrossAttnUpBlock2D"],
        }
        folder, name = cascades.make(tmp_path / model, "base", unet=one_level), "IFPipeline"
    else:
        folder = latents.make(tmp_path / model, model)
        name = "StableDiffusionXLPipeline" if model == "sdxl" else "StableDiffusionPipeline"
    stage = families.open_stage(str(folder), kind="base")
    expected_type = {"sd2": "v_prediction"}.get(model, "epsilon")
    assert stage.path.prediction_type == expected_type
    flat = pipeline.read_weights(stage)
    batch = batch_of(stage)
    value, parts, found, drawn = ours(stage, flat, batch)

    pipe = getattr(diffusers, name).from_pretrained(folder).to(torch.float32)
    tokens = stage.tokens(PROMPTS, keep="zib")
    total, subject, prior, judged = theirs(pipe, drawn, batch, tokens)
    np.testing.assert_allclose(value, total, rtol=1e-4)
    np.testing.assert_allclose(parts["loss/subject"], subject, rtol=1e-4)
    np.testing.assert_allclose(parts["loss/prior"], prior, rtol=1e-4)
    judged = {key: x for key, x in judged.items() if "embed_tokens" not in key[1]}
    assert found.keys() == judged.keys()
    for part in {part for part, _ in judged}:
        largest = max(np.abs(x).max() for (p, _), x in judged.items() if p == part)
        assert largest > 0
        for (p, key), gradient in judged.items():
            if p == part:
                assert np.abs(found[p, key] - gradient).max() <= 1e-4 * largest, (p, key)
