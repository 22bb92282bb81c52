"""PyTorch diffusers' side of `bench/parity.py`: texts, outputs of denoisers, latents, pictures.

Arrays are NHWC on both sides; torch tensors in and out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import jax
import numpy as np
import small_models
import torch
from diffusers import Flux2KleinPipeline, FluxPipeline, StableDiffusion3Pipeline, ZImagePipeline

Call = Callable[..., Any]  # a network, perhaps with other parameters


def torch_of(tree: Any) -> Any:
    """A pytree of arrays as tensors."""
    return jax.tree.map(lambda x: torch.from_numpy(np.array(x)), tree)


def first(x: Any) -> torch.Tensor:
    """NHWC to NCHW."""
    return torch_of(x).movedim(-1, 1) if not isinstance(x, torch.Tensor) else x.movedim(-1, 1)


def last(x: torch.Tensor) -> torch.Tensor:
    """NCHW to NHWC."""
    return x.movedim(1, -1)


def encoded(pipe: Any, prompts: Sequence[str]) -> dict[str, Any]:
    """The prompts as the pipeline gives them to its denoiser; Z-Image's without padding."""
    asked = list(prompts)
    one: dict[str, Any] = {"do_classifier_free_guidance": False}
    match pipe:
        case StableDiffusion3Pipeline():
            states, _, pooled, _ = pipe.encode_prompt(asked, asked, asked, **one)
            return {"text states": states, "pooled text": pooled}
        case FluxPipeline():
            states, pooled, _ = pipe.encode_prompt(asked, asked)
            return {"text states": states, "pooled text": pooled}
        case ZImagePipeline():
            states, _ = pipe.encode_prompt(asked, device="cpu", **one)
            return {"text states": torch.cat(states)}
        case Flux2KleinPipeline():
            states, _ = pipe.encode_prompt(asked, text_encoder_out_layers=small_models.READ)
            return {"text states": states}
    if hasattr(pipe, "vae"):
        found = pipe.encode_prompt(asked, device="cpu", num_images_per_prompt=1, **one)
    else:
        found = pipe.encode_prompt(asked, device="cpu", clean_caption=False, **one)
    made = {"text states": found[0]}
    return made | ({"pooled text": found[2]} if len(found) > 2 else {})


def encoder(network: Any, ids: torch.Tensor, mask: torch.Tensor, after: Sequence[int]) -> Any:
    """What a text encoder gives, under the names of our own.

    after: numbers of a language model's layers after which its states are read.
    """
    kind = type(network).__name__
    if kind.startswith("CLIP"):
        out = network(ids, output_hidden_states=True)
        pooled = out.get("pooler_output")
        vector = {"projected": out.text_embeds} if pooled is None else {"pooled": pooled}
        return {"penultimate": out.hidden_states[-2], "last": out.last_hidden_state, **vector}
    if kind.startswith("T5"):
        return {"states": network(ids, attention_mask=mask).last_hidden_state}
    out = network(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return {f"after {k}": out[k] for k in after}


def denoised(
    pipe: Any, call: Call, xt: torch.Tensor, t: torch.Tensor, cond: Any, extra: dict[str, Any]
) -> torch.Tensor:
    """The denoiser's output for `xt` at `t`, as our networks are told it.

    Args:
      cond: our embeddings of each row, as tensors.
      extra: of a row `condition` and `noise_level` of an upscaler, `sizes` of SDXL.
    """
    b, h, w, c = xt.shape
    match pipe:
        case StableDiffusion3Pipeline():
            return last(
                call(
                    hidden_states=first(xt),
                    encoder_hidden_states=cond.states,
                    pooled_projections=cond.pooled,
                    timestep=t,
                    return_dict=False,
                )[0]
            )
        case FluxPipeline():
            guided = pipe.transformer.config.guidance_embeds
            out = call(
                hidden_states=pipe._pack_latents(first(xt), b, c, h, w),
                encoder_hidden_states=cond.states,
                pooled_projections=cond.pooled,
                timestep=t / 1000,
                guidance=torch.ones(b) if guided else None,
                img_ids=pipe._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32),
                txt_ids=torch.zeros(cond.states.shape[1], 3),
                return_dict=False,
            )[0]
            return last(pipe._unpack_latents(out, 8 * h, 8 * w, 8))
        case ZImagePipeline():
            pictures = [row[:, None] for row in first(xt)]
            captions = [x[real > 0] for x, real in zip(cond.states, cond.mask, strict=True)]
            out = call(pictures, 1 - t / 1000, captions, return_dict=False)[0]
            return -torch.stack([row[:, 0].movedim(0, -1) for row in out])
        case Flux2KleinPipeline():
            latents = first(xt)
            out = call(
                hidden_states=pipe._pack_latents(latents),
                encoder_hidden_states=cond,
                timestep=t / 1000,
                img_ids=pipe._prepare_latent_ids(latents),
                txt_ids=pipe._prepare_text_ids(cond),
                guidance=None,
                return_dict=False,
            )[0]
            return out.reshape(b, h, w, c)
    added: dict[str, Any] = {}
    states = cond
    if "sizes" in extra:
        states = cond.states
        added = {"added_cond_kwargs": {"text_embeds": cond.pooled, "time_ids": extra["sizes"]}}
    if "condition" in extra:
        xt = torch.cat([xt, extra["condition"]], -1)
        added = {"class_labels": extra["noise_level"].long()}
    return last(call(first(xt), t.long(), states, return_dict=False, **added)[0])


def latents(pipe: Any, pictures: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of a sample, as the pipeline scales, shifts or norms latents."""
    found = pipe.vae.encode(first(pictures)).latent_dist
    if not isinstance(pipe, Flux2KleinPipeline):
        scale = pipe.vae.config.scaling_factor
        shift = pipe.vae.config.get("shift_factor") or 0.0
        return last((found.mean - shift) * scale), last(found.std * scale)
    mean, root = _norm(pipe.vae)
    pack = pipe._patchify_latents
    return last((pack(found.mean) - mean) / root), last(pack(found.std) / root)


def pictures(pipe: Any, x0: torch.Tensor) -> torch.Tensor:
    """The pictures of samples."""
    z = first(x0)
    if isinstance(pipe, Flux2KleinPipeline):
        mean, root = _norm(pipe.vae)
        z = pipe._unpatchify_latents(z * root + mean)
    else:
        z = z / pipe.vae.config.scaling_factor + (pipe.vae.config.get("shift_factor") or 0.0)
    return last(pipe.vae.decode(z).sample)


def _norm(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (1, -1, 1, 1)
    root = torch.sqrt(vae.bn.running_var.view(shape) + vae.config.batch_norm_eps)
    return vae.bn.running_mean.view(shape), root


def noised(
    pipe: Any, x0: torch.Tensor, noise: torch.Tensor, told: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`xt` and the target of the loss at levels as networks are told them."""
    if hasattr(pipe, "transformer"):
        sigma = told.reshape(-1, 1, 1, 1) / 1000
        return (1 - sigma) * x0 + sigma * noise, noise - x0
    path = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    xt = path.add_noise(x0, noise, told.long())
    says_v = path.config.prediction_type == "v_prediction"
    return xt, path.get_velocity(x0, noise, told.long()) if says_v else noise


def flow_pictures(
    pipe: Any, prompts: Sequence[str], noise: Any, *, steps: int, scale: float
) -> np.ndarray:
    """Pictures `[B,H,W,3]` in [0, 1] by the pipeline of a flow, from this first noise.

    scale: ours; Z-Image's pipeline counts from the prediction with the prompt, one less.
    """
    start, extra = first(noise), {}
    if isinstance(pipe, FluxPipeline):
        start = pipe._pack_latents(start, *start.shape)
    if isinstance(pipe, ZImagePipeline):
        scale, extra = scale - 1, {"negative_prompt": [""] * len(prompts)}
    if isinstance(pipe, Flux2KleinPipeline):
        extra = {"text_encoder_out_layers": small_models.READ}
    factor = 2 if not isinstance(pipe, Flux2KleinPipeline) else 4
    return pipe(
        prompt=list(prompts),
        num_inference_steps=steps,
        guidance_scale=scale,
        height=noise.shape[1] * factor,
        width=noise.shape[2] * factor,
        latents=start,
        output_type="np",
        **extra,
    ).images
