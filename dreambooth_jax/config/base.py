"""Every setting of a run with its meaning, unit and choices, and what is known about them."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from dreambooth_jax.adapt import ADAPTERS, THEN
from dreambooth_jax.adapt.frozen import DTYPES as FROZEN_DTYPES
from dreambooth_jax.config.base_loss import for_loss
from dreambooth_jax.config.base_modes import for_modes
from dreambooth_jax.data.benchmark import MEMBERS
from dreambooth_jax.diffusion.guidance import THRESHOLDS
from dreambooth_jax.diffusion.path import DENSITIES
from dreambooth_jax.diffusion.sampler import SAMPLERS
from dreambooth_jax.diffusion.spacing import BY_SIGMA
from dreambooth_jax.models.unet_blocks import REMAT
from dreambooth_jax.optim import LR_SCHEDULES, OPTIMIZERS


def base_config() -> ConfigDict:
    """All settings with their defaults, locked: files in `configs/` set only what differs.

    `None` marks a setting that follows another one; the comment says which.
    """
    c = ConfigDict()
    for add in (_model, _subject, _prior, _train, _adapt, _optim, for_loss, _sampling, _devices):
        add(c)
    for_modes(c)
    return c.lock()


def _model(c: ConfigDict) -> None:
    """Adds the model, its precision, the stages to train, and the hub."""
    c.seed = 0  # of everything random: initial noise, time steps, rows drawn, class images
    c.dtype = "float32"  # in which networks compute; trained parameters are float32 anyway
    # "embedded", a diffusers folder, gs://…, a hub id owner/name[@…], or one FILE.safetensors
    c.base_model = "embedded"  # the model to fine-tune
    c.base_settings = ""  # folder or hub id with that file's settings; "" is its published model
    c.vae_model = ""  # another autoencoder: folder, file, gs://… or hub id; "" is the base's own
    c.clip_skip = 0  # last layers of CLIPs that prompts skip, as in diffusers (A1111 counts 1 more)
    c.upscaler_model = "embedded"  # second stage of a cascade: the same choices, or "" for none
    c.variant = ""  # of the weight files, "fp16" for ….fp16.safetensors; "" is the plain ones
    # Pixels along a side, or height and width: 512, or 768,512
    c.resolution = config_dict.placeholder(object)  # size of the pictures; None: the model's own
    c.stages = ("base", "upscaler")  # what is fine-tuned, in this order

    c.hub = ConfigDict()  # where models with a hub id or of gs://… come from
    c.hub.cache_dir = ""  # folder of what was downloaded; "" is as HF_HOME says
    c.hub.offline = False  # use only the local cache


def _subject(c: ConfigDict) -> None:
    """Adds the subjects: photos, names, captions, masks."""
    c.subject = ConfigDict()
    c.subject.images = "embedded"  # folder (or gs://…) with 3-5 photos, or "embedded"
    c.subject.class_noun = "bird"  # what the subject is, one noun without article: "bird", "toy"
    c.subject.identifier = "auto"  # the subject's own word, "zib"; "auto" finds a rare token
    c.subject.others = ()  # more subjects: (images, class_noun, identifier) each, as above
    c.subject.captions = "prompt"  # "prompt": "a zib bird" for all; "files": NAME.txt beside each
    c.subject.masks = "none"  # "files": NAME.mask.png, white is the subject; "alpha": photo's own
    c.subject.strict = False  # an unusable file stops the run instead of being left out
    c.subject.held_out = 0  # photos, last by name, that are not trained on: the held-out loss's
    # (fy, fx), each from 0.0 to 1.0: (0.0, 0.5) is the top; () is around the mask, else the centre
    c.subject.crop = ()  # place of the crop of all photos
    c.subject.crops = 1  # crops per photo; 1 is the centre
    c.subject.flip = False  # mirrored copies too; never for writing or one-sided things
    c.data = ConfigDict()  # the shapes of photos
    c.data.buckets = 0  # 3, 5, …: each photo is cut to the nearest of so many; 0: all to one


def _prior(c: ConfigDict) -> None:
    """Adds prior preservation."""
    c.prior_loss_weight = 1.0  # λ of Ruiz et al. 2022, eq. 2; 0 trains without class images
    c.prior = ConfigDict()
    c.prior.kind = "images"  # "images": those of the base; "prediction": its own output is the aim
    # None follows the steps (`num_class_images`), of own ones all; about 1000 in the paper
    c.prior.num_images = config_dict.placeholder(int)  # class images of each class noun
    c.prior.images = ""  # a folder of your own class images; "": the untouched base draws them
    c.prior.batch_size = 32  # images per sampler call, all devices together
    c.prior.negative_prompt = ""  # guidance of drawn class images leads away from it
    c.prior.folder = ""  # where drawn ones are kept; "" is <workdir>/prior


def _train(c: ConfigDict) -> None:
    """Adds the train loop, and the second stage's own settings."""
    c.train = ConfigDict()
    c.train.num_steps = 1000  # optimizer steps of a stage
    c.train.batch_size = 4  # rows per optimizer step: all devices, all accumulation, both kinds
    c.train.prior_fraction = 0.5  # share of class rows among them, while λ > 0
    c.train.accumulate = 1  # parts a batch is cut into, one after the other, to save memory
    # "none"; "dots": all but the results of convolutions and linear layers; "blocks": all of each
    # residual block and attention (least memory, about a third more work)
    c.train.remat = "none"  # what is computed again in the backward pass, to save memory
    c.train.text_encoder = False  # train the text encoder as well; see `trainable_rules`
    c.train.text_encoder_steps = config_dict.placeholder(int)  # then it rests; None: it never does
    c.train.ema_decay = 0.0  # per optimizer step, of the averaged weights that are kept; 0 is off
    c.train.max_bad_steps = 5  # non-finite steps in a row (each is skipped) before the run stops
    c.train.log_every = 10  # optimizer steps between two lines of metrics.jsonl
    c.train.held_out_every = 200  # optimizer steps between two looks at the held-out loss; 0: none
    c.train.sample_every = 0  # optimizer steps between prompt grids; 0: only before and after
    c.train.checkpoint_every = 200  # optimizer steps between checkpoints; the last is always kept
    c.train.max_to_keep = 2  # checkpoints of a stage that stay on disk
    c.train.keep_weights_every = 0  # optimizer steps between weights that all stay; 0 is off

    c.upscaler = ConfigDict()  # the second stage's own settings; None follows the first stage
    c.upscaler.num_steps = config_dict.placeholder(int)  # optimizer steps, for train.num_steps
    c.upscaler.batch_size = config_dict.placeholder(int)  # rows, for train.batch_size
    c.upscaler.accumulate = config_dict.placeholder(int)  # parts, for train.accumulate
    c.upscaler.learning_rate = config_dict.placeholder(float)  # for optim.learning_rate
    c.upscaler.aug_level = 1  # noise on the low-res input, as a time step 0..999; low keeps detail
    c.upscaler.sample_aug_level = config_dict.placeholder(int)  # when sampling; see `resolve`


def _adapt(c: ConfigDict) -> None:
    """Adds the way to adapt."""
    c.adapt = ConfigDict()
    # "full": the leaves themselves; "lora": low-rank changes; "textual_inversion": new tokens
    # alone; "pivotal": new tokens first, then the model around them
    c.adapt.name = "full"  # the way to adapt
    # The first match wins; {denoiser} is the component that is fine-tuned
    c.adapt.train = (("{denoiser}/.*", True), (".*", False))  # path regex → train it?
    c.adapt.num_vectors = 1  # new tokens that the identifier becomes, where some are trained
    c.adapt.initial_word = ""  # whose embedding they start from; "" is the class noun
    c.adapt.then = "full"  # second phase of "pivotal", after its tokens: "full", "lora"
    c.adapt.inversion_steps = config_dict.placeholder(int)  # of "pivotal"; None: half of all steps
    c.adapt.inversion_learning_rate = 5e-4  # of its new tokens; optim.learning_rate is of the rest
    c.adapt.rank = 16  # of LoRA's factors
    # Files of PEFT and diffusers, or of kohya's trainer; of the base stage
    c.adapt.lora_file = ""  # LoRA (safetensors file or its folder) that training begins from
    c.adapt.alpha = config_dict.placeholder(float)  # the change is scaled by α / rank; None is rank
    # Among those that adapt.train chooses; "" is the model family's own
    c.adapt.targets = ""  # regex of the kernels that get LoRA
    # "file": their file's; "bfloat16", "float32"; "int8": 8 bits and a scale per output channel
    c.adapt.frozen_dtype = "file"  # dtype in which weights that are not trained are held
    # "": none, the model is not distilled; "none" trains a distilled model as it is
    c.adapt.assistant = ""  # LoRA file that undoes a distillation, in training alone
    c.adapt.dora = False  # LoRA with trained lengths of the output channels (Liu et al. 2024)


def _optim(c: ConfigDict) -> None:
    """Adds the optimizer."""
    c.optim = ConfigDict()
    # "adamw", "adamw_bf16" (half of its memory), "adamw8bit" (a quarter), "adafactor", "lion",
    # "sgd", "prodigy" (finds its own learning rate: write 1.0), "schedule_free_adamw" (averages
    # instead of a schedule)
    c.optim.name = "adamw"  # the update rule
    c.optim.learning_rate = 1e-5  # the peak; the paper's for Imagen (5e-6 for Stable Diffusion)
    c.optim.text_encoder_learning_rate = config_dict.placeholder(float)  # None: the same
    c.optim.warmup_steps = 0  # optimizer steps of linear rise from 0
    c.optim.schedule = "constant"  # after the warm-up: "constant", "cosine", "linear"
    c.optim.final_fraction = 0.0  # of the peak, reached by "cosine" and "linear" at the last step
    c.optim.b1 = 0.9  # decay of the first moment, per step
    c.optim.b2 = 0.999  # decay of the second moment, per step
    c.optim.eps = 1e-8  # added to the root of the second moment
    c.optim.weight_decay = 1e-2  # decoupled, times the learning rate
    c.optim.grad_clip = 1.0  # largest global norm of the gradient; 0 is off


def _sampling(c: ConfigDict) -> None:
    """Adds the sampler and the prompt grid."""
    c.sampler = ConfigDict()
    # "ddpm" (ancestral), "ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m",
    # "dpmpp_2m_karras", "dpmpp_2m_sde", "unipc"; "lcm" for a model distilled to few steps
    c.sampler.name = "ddpm"  # the rule of a step; docs/sampling.md compares them
    c.sampler.num_steps = 100  # time steps per image, base stage
    c.sampler.guidance_scale = 7.0  # 1 is off; more follows the prompt more closely
    # "leading", "linspace", "trailing", "karras", "exponential"; "model" is as the sampler or the
    # model's files say
    c.sampler.spacing = "model"  # spacing of the noise levels that are visited
    c.sampler.guidance_rescale = 0.0  # share brought back to the contrast without guidance; 0 off
    c.sampler.guidance_interval = (0.0, 1.0)  # shares of the steps between which there is guidance
    # "bfloat16" rounds the inputs of matrix products and convolutions of float32 networks, not the
    # sums: faster on CPUs with avx512_bf16. On accelerators write dtype=bfloat16 instead
    c.sampler.products = "float32"  # precision of what is multiplied while pictures are drawn
    c.sampler.threshold = "model"  # of x0_hat: "dynamic", "static", "none", or as its files say
    c.sampler.upscaler_num_steps = 50  # time steps per image, upscaler stage
    c.sampler.upscaler_guidance_scale = 4.0  # guidance of the upscaler stage

    c.sample = ConfigDict()  # the prompt grid drawn before, during and after training
    # {subject} is "zib bird", {identifier} and {class_noun} its parts; `data/prompts.py` has sets
    c.sample.prompts = (  # prompts, or names of sets, "art"
        "a {subject}",
        "a {subject} in the forest",
        "a {subject} on the beach",
        "a {subject} in the snow",
        "a {class_noun}",
    )
    c.sample.negative_prompt = ""  # guidance leads away from it, "blurry"; "" is no prompt
    # A text file of one prompt a line, PROMPT | NEGATIVE | SEED | HEIGHTxWIDTH, for --mode=sample
    c.sample.prompts_file = ""  # its lines are drawn instead of sample.prompts
    # (("runs/duck", 0.8), ("style.safetensors", 0.5)): folders of runs, files of others
    c.sample.loras = ()  # LoRA that --mode=sample adds to the weights, and their strengths
    c.sample.num_images = 2  # per prompt
    c.sample.batch_size = 16  # images per sampler call, all devices together


def _devices(c: ConfigDict) -> None:
    """Adds the mesh and how leaves are split over it."""
    c.mesh = ConfigDict()  # devices along each axis; their product is the number of devices
    c.mesh.data = -1  # rows of a batch are split; -1 takes all devices that the others leave
    c.mesh.fsdp = 1  # rows are split, and parameters and optimizer state as well
    c.mesh.tensor = 1  # single layers are split, rows are not: all of these work on the same ones
    c.sharding = ConfigDict()
    # Path regex → how its leaf is split; first match wins. "columns": a layer's outputs over
    # tensor; "rows": its inputs; these and "fsdp": another axis over fsdp; "replicate": not at all
    c.sharding.rules = ()  # () is the model family's: layers in pairs, the rest over fsdp
    c.sharding.min_bytes = 4 * 2**20  # bytes; smaller leaves are not split over fsdp


CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("float32", "bfloat16"),
    "stages": ("base", "upscaler"),
    "subject.captions": ("prompt", "files"),
    "subject.masks": ("none", "files", "alpha"),
    "edit.method": ("sdedit", "inversion", "prompt_to_prompt"),
    "edit.masks": ("none", "files", "alpha", "word", "difference"),
    "edit.local_blend": ("none", "word", "difference"),
    "prior.kind": ("images", "prediction"),
    "train.remat": tuple(REMAT),
    "precompile.programs": ("sample", "train", "fleet"),
    "adapt.name": tuple(ADAPTERS),
    "adapt.then": tuple(THEN),
    "adapt.frozen_dtype": FROZEN_DTYPES,
    "loss.learned_variance": ("fixed", "trained"),
    "loss.density": ("model", *DENSITIES),
    "optim.name": tuple(OPTIMIZERS),
    "optim.schedule": tuple(LR_SCHEDULES),
    "sampler.name": tuple(SAMPLERS),
    "sampler.products": ("float32", "bfloat16"),
    "sampler.spacing": ("model", "leading", "linspace", "trailing", *BY_SIGMA),
    "sampler.threshold": tuple(THRESHOLDS),
    "log.to": ("jsonl", "tensorboard", "wandb", "trackio"),
    "sharding.rules": ("fsdp", "columns", "rows", "replicate"),
    "export.dtype": ("float16", "bfloat16", "float32"),
    "export.push_part": ("auto", "model", "lora"),
    "evaluate.encoders": (
        "dino_vits16",
        "clip_vitb32",
        "clip_vitl14",
        "efficientnet_lite0",
        "lpips_alex",
        "lpips_vgg",
    ),
    "benchmark.subjects": tuple(MEMBERS),
}
RANGES: dict[str, tuple[str, ...]] = {  # interval → keys; a bracket includes the bound
    "[1, inf)": (
        "prior.batch_size",
        "fleet.at_once",
        "train.batch_size",
        "train.accumulate",
        "train.text_encoder_steps",
        "train.max_bad_steps",
        "train.log_every",
        "train.checkpoint_every",
        "train.max_to_keep",
        "upscaler.batch_size",
        "upscaler.accumulate",
        "sampler.num_steps",
        "sampler.upscaler_num_steps",
        "sample.num_images",
        "edit.num_images",
        "sample.batch_size",
        "mesh.fsdp",
        "mesh.tensor",
        "adapt.num_vectors",
        "adapt.inversion_steps",
        "adapt.rank",
        "identify.count",
        "identify.num_drawn",
        "evaluate.num_images",
        "evaluate.batch_size",
        "evaluate.resamples",
        "log.profile_steps",
        "precompile.num_slices",
    ),
    "[0, inf)": (
        "clip_skip",
        "prior_loss_weight",
        "prior.num_images",
        "train.sample_every",
        "train.held_out_every",
        "subject.held_out",
        "train.keep_weights_every",
        "optim.warmup_steps",
        "optim.eps",
        "optim.weight_decay",
        "optim.grad_clip",
        "loss.min_snr_gamma",
        "loss.offset_noise",
        "sampler.guidance_scale",
        "sampler.upscaler_guidance_scale",
        "sharding.min_bytes",
        "restore.base",
        "restore.upscaler",
        "identify.num_images",
        "log.profile_at",
        "benchmark.trial_steps",
        "edit.grow",
        "edit.feather",
        "edit.context",
    ),
    "(0, inf)": (
        "adapt.alpha",
        "adapt.inversion_learning_rate",
        "loss.logit_std",
        "loss.shift",
        "optim.learning_rate",
        "optim.text_encoder_learning_rate",
        "upscaler.learning_rate",
    ),
    "(0, 1)": ("train.prior_fraction",),
    "(0, 1]": ("edit.strength",),
    "[-10, 10]": ("loss.logit_mean",),
    "[-1, 1.75]": ("loss.mode_scale",),  # to 2 / (π - 2): outside, levels fall and rise in u
    "[1, 25]": ("benchmark.num_prompts",),
    "[0, 1)": ("train.ema_decay", "optim.b1", "optim.b2"),
    "[0, 1]": (
        "optim.final_fraction",
        "loss.outside_mask",
        "sampler.guidance_rescale",
        "edit.cross_steps",
        "edit.self_steps",
    ),
    "[0, 999]": (
        "loss.first_step",
        "loss.last_step",
        "upscaler.aug_level",
        "upscaler.sample_aug_level",
    ),
    "[0, 2147483647]": ("seed",),
    "[1, 2147483647]": ("train.num_steps", "upscaler.num_steps"),  # the step is an int32
    "[1, 1000]": ("subject.crops",),  # each is a picture in memory
    "[0, 9]": ("data.buckets",),
}
STAGE_KEYS = {  # a key of the second stage → the key of the first stage that it stands in for
    "upscaler.num_steps": "train.num_steps",
    "upscaler.batch_size": "train.batch_size",
    "upscaler.accumulate": "train.accumulate",
    "upscaler.learning_rate": "optim.learning_rate",
    "sampler.upscaler_num_steps": "sampler.num_steps",
    "sampler.upscaler_guidance_scale": "sampler.guidance_scale",
}
# What may differ when a run is continued: nothing here changes a weight or a class image, beyond
# rounding in the case of train.remat, mesh and sharding.
RESULT_FREE_KEYS = (
    "prior.folder",
    "subject.strict",
    "train.max_bad_steps",
    "train.log_every",
    "train.sample_every",
    "train.held_out_every",
    "train.checkpoint_every",
    "train.max_to_keep",
    "train.keep_weights_every",
    "train.remat",
    "mesh.*",
    "sharding.*",
    "sample.*",
    "log.*",
    "compile.*",
    "export.*",
    "hub.*",
    "identify.*",
    "evaluate.*",
    "precompile.*",
    "benchmark.*",
    "fleet.*",
    "edit.*",
    "restore.*",
)
# Places of the host that a run was started on: compiled programs are loaded from them, or files are
# written there. Another's run folder does not say where that happens here (`of_run`).
HOST_KEYS = ("compile.cache_dir", "hub.cache_dir", "prior.folder")
# Without which a checkpoint cannot be read, or a prompt not be put together, by the other modes.
RESTORE_KEYS = (
    "seed",
    "stages",
    "subject.class_noun",
    "subject.identifier",
    "subject.others",
    "adapt.*",
    "train.text_encoder",
    "train.ema_decay",
    "optim.name",
    "loss.learned_variance",
    "loss.zero_terminal_snr",
)


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key, `{"subject.images": "embedded", …}`, sorted by key."""
    flat: dict[str, Any] = {}
    for key, value in sorted(config.items()):
        if isinstance(value, (ConfigDict, Mapping)):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
