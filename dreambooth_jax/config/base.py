"""Every setting of a run with its meaning, unit and choices, and what is known about them."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from dreambooth_jax.adapt import ADAPTERS, THEN
from dreambooth_jax.data.benchmark import MEMBERS
from dreambooth_jax.diffusion.guidance import THRESHOLDS
from dreambooth_jax.diffusion.sampler import SAMPLERS
from dreambooth_jax.models.unet_blocks import REMAT
from dreambooth_jax.optim import LR_SCHEDULES, OPTIMIZERS

# The projections of every kind of attention: UNet's, added text's, CLIP's, T5's.
LORA_TARGETS = (
    r".*/(to_[qkv]|to_out/0|add_[kv]_proj|[qkv]_proj|out_proj|SelfAttention/[qkvo])/kernel"
)

# Layers in pairs, what `mesh.tensor` splits: attention's projections in and out, the two of a
# feed-forward layer or of a residual block, with LoRA's factors of each.
_FIRST = "to_[qkv]|add_[kv]_proj|[qkv]_proj|SelfAttention/[qkv]|ff/net/0/proj|fc1|wi_[01]|linear_1"
_FIRST = rf"{_FIRST}|conv1|time_emb_proj|(resnets|(up|down)samplers)/\d+/norm2"
_SECOND = "to_out/0|out_proj|SelfAttention/o|ff/net/2|fc2|wo|linear_2|add_embedding/proj"
_SECOND = rf"{_SECOND}|conv2|conv_shortcut|(up|down)samplers/0/conv"
SHARDING_RULES = (
    (rf".*/({_FIRST})/(kernel|bias|scale)(/lora_up|/dora_length)?", "columns"),
    (rf".*/({_SECOND})/kernel(/lora_down)?", "rows"),
    (".*", "fsdp"),
)


def base_config() -> ConfigDict:
    """All settings with their defaults, locked: files in `configs/` set only what differs.

    `None` marks a setting that follows another one; the comment says which.
    """
    c = ConfigDict()
    c.seed = 0  # of everything random: initial noise, time steps, rows drawn, class images
    c.dtype = "float32"  # in which networks compute; trained parameters are float32 anyway
    c.base_model = "embedded"  # "embedded", a diffusers folder, gs://…, or a hub id owner/name[@…]
    c.upscaler_model = "embedded"  # second stage of a cascade: the same choices, or "" for none
    c.variant = ""  # of the weight files, "fp16" for ….fp16.safetensors; "" is the plain ones
    c.resolution = config_dict.placeholder(int)  # pixels along a side; None is the model's own
    c.stages = ("base", "upscaler")  # what is fine-tuned, in this order

    c.hub = ConfigDict()  # where models with a hub id or of gs://… come from
    c.hub.cache_dir = ""  # folder of what was downloaded; "" is as HF_HOME says
    c.hub.offline = False  # take what is downloaded already, ask nobody

    c.subject = ConfigDict()
    c.subject.images = "embedded"  # folder (or gs://…) with 3-5 photos, or "embedded"
    c.subject.class_noun = "bird"  # what the subject is, one noun without article: "bird", "toy"
    c.subject.identifier = "auto"  # the subject's own word, "zib"; "auto" finds a rare token
    c.subject.others = ()  # more subjects: (images, class_noun, identifier) each, as above
    c.subject.captions = "prompt"  # "prompt": "a zib bird" for all; "files": NAME.txt beside each
    c.subject.masks = "none"  # "files": NAME.mask.png, white is the subject; "alpha": photo's own
    c.subject.strict = False  # an unusable file stops the run instead of being left out
    c.subject.held_out = 0  # photos, last by name, that are not trained on: the held-out loss's
    c.subject.crops = 1  # crops per photo; 1 is the centre
    c.subject.flip = False  # mirrored copies too; never for writing or one-sided things

    c.prior_loss_weight = 1.0  # λ of Ruiz et al. 2022, eq. 2; 0 trains without class images
    c.prior = ConfigDict()
    c.prior.kind = "images"  # "images": those of the base; "prediction": its own output is the aim
    # Class images of each class noun; None follows the steps (`num_class_images`), of own ones all.
    c.prior.num_images = config_dict.placeholder(int)  # about 1000 in the paper, "less can be used"
    c.prior.images = ""  # a folder of your own class images; "": the untouched base draws them
    c.prior.batch_size = 32  # images per sampler call, all devices together
    c.prior.folder = ""  # where drawn ones are kept; "" is <workdir>/prior

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
    c.upscaler.sample_aug_level = config_dict.placeholder(int)  # when sampling; see `for_stage`

    c.adapt = ConfigDict()
    # "full": the leaves themselves; "lora": low-rank changes; "textual_inversion": new tokens
    # alone; "pivotal": new tokens first, then the model around them
    c.adapt.name = "full"  # the way to adapt
    c.adapt.train = (("unet/.*", True), (".*", False))  # path regex → train it? first match wins
    c.adapt.num_vectors = 1  # new tokens that the identifier becomes, where some are trained
    c.adapt.initial_word = ""  # whose embedding they start from; "" is the class noun
    c.adapt.then = "full"  # what "pivotal" goes on with, once the tokens rest: "full", "lora"
    c.adapt.inversion_steps = config_dict.placeholder(int)  # of "pivotal"; None: half of all steps
    c.adapt.inversion_learning_rate = 5e-4  # of its new tokens; optim.learning_rate is of the rest
    c.adapt.rank = 16  # of LoRA's factors
    c.adapt.alpha = config_dict.placeholder(float)  # the change is scaled by α / rank; None is rank
    c.adapt.targets = LORA_TARGETS  # regex of the kernels, among those that adapt.train chooses
    c.adapt.dora = False  # LoRA with trained lengths of the output channels (Liu et al. 2024)

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

    c.loss = ConfigDict()
    c.loss.first_step = 0  # time steps are drawn from this one …
    c.loss.last_step = 999  # … to this one, both included
    c.loss.offset_noise = 0.0  # standard deviation of noise that a whole channel shares; 0 is off
    c.loss.outside_mask = 0.1  # weight of a pixel off the subject, where subject.masks are used
    c.loss.zero_terminal_snr = False  # the schedule is made to end in pure noise (Lin et al. 2023)
    # A model's own output for the variance of a step: "fixed" does without, "trained" learns it
    c.loss.learned_variance = "fixed"  # by the bound of Nichol & Dhariwal 2021
    c.loss.min_snr_gamma = 0.0  # γ of min-SNR weighting (Hang et al. 2023 use 5); 0 is off

    c.sampler = ConfigDict()
    c.sampler.name = "ddpm"  # "ddpm" (ancestral), "ddim", "dpmpp_2m"
    c.sampler.num_steps = 100  # time steps per image, base stage
    c.sampler.guidance_scale = 7.0  # 1 is off; more follows the prompt more closely
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
    c.sample.num_images = 2  # per prompt
    c.sample.batch_size = 16  # images per sampler call, all devices together

    c.benchmark = ConfigDict()  # of --mode=benchmark: many subjects, each a run of its own
    c.benchmark.data = ""  # a copy of the DreamBooth data set, or of a part: the folder of dataset/
    c.benchmark.subjects = ()  # names, "dog3"; () is all that are in the copy
    c.benchmark.num_prompts = 25  # of each subject's 25, evenly taken
    c.benchmark.keep_checkpoints = True  # of finished subjects; False: their exports alone stay
    c.benchmark.trial_steps = 10  # measured to tell how long it will take; 0 does not measure

    c.restore = ConfigDict()  # checkpoints that --mode=sample and --mode=export take
    c.restore.base = config_dict.placeholder(int)  # step; None is the newest, 0 the untouched model
    c.restore.upscaler = config_dict.placeholder(int)  # the same for the second stage

    c.identify = ConfigDict()  # the table of --mode=identify
    c.identify.tokenizer = ""  # a folder with a tokenizer; "" is the base model's
    c.identify.count = 50  # candidates, best first
    c.identify.num_images = 0  # drawn with each, to rank them by what they change; 0 draws none
    c.identify.num_drawn = 12  # how many of the best by their embeddings are drawn

    c.evaluate = ConfigDict()  # of --mode=evaluate, and of the end of a run
    c.evaluate.at_end = True  # a run ends with the scores of the judges at hand; none: no scores
    # "dino_vits16", "clip_vitb32" and so on, as below; () is those that are installed or on disk
    c.evaluate.encoders = ()  # the judges
    c.evaluate.prompts = ()  # as sample.prompts, which () stands for
    c.evaluate.num_images = config_dict.placeholder(int)  # per prompt, for sample.num_images
    c.evaluate.generated = ""  # folder of pictures to judge instead of the run's own
    c.evaluate.untouched = ""  # folder with the same prompts and seeds by the base, for the drift
    c.evaluate.reference = ""  # folder of real photos; "" is subject.images
    c.evaluate.batch_size = 16  # pictures per call of a judge, all devices together
    c.evaluate.resamples = 1000  # draws behind an interval
    # Where a judge's weights are: a folder in the layout of transformers, or a hub id …
    c.evaluate.dino_vits16 = "facebook/dino-vits16"  # the paper's own judge of subjects
    c.evaluate.clip_vitb32 = "openai/clip-vit-base-patch32"  # the paper's of prompts, probably
    c.evaluate.clip_vitl14 = "openai/clip-vit-large-patch14"  # larger: only if named
    # … or a file; "" is the installed package's (extra: eval)
    c.evaluate.efficientnet_lite0 = ""  # features of an ImageNet classifier
    c.evaluate.lpips_alex = ""  # perceptual distance; or a folder with lpips' state dictionary
    c.evaluate.lpips_vgg = ""  # the same over VGG16, slow: only if named

    c.mesh = ConfigDict()  # devices along each axis; their product is the number of devices
    c.mesh.data = -1  # rows of a batch are split; -1 takes all devices that the others leave
    c.mesh.fsdp = 1  # rows are split, and parameters and optimizer state as well
    c.mesh.tensor = 1  # single layers are split, rows are not: all of these work on the same ones
    c.sharding = ConfigDict()
    # Path regex → how its leaf is split; first match wins. "columns": a layer's outputs over
    # tensor; "rows": its inputs; these and "fsdp": another axis over fsdp; "replicate": not at all
    c.sharding.rules = SHARDING_RULES  # layers in pairs, above; the rest over fsdp
    c.sharding.min_bytes = 4 * 2**20  # bytes; smaller leaves are not split over fsdp

    c.log = ConfigDict()
    c.log.tensorboard = False  # event files in <workdir>/tensorboard as well (extra: tensorboard)
    c.log.profile_at = config_dict.placeholder(int)  # step whose trace goes to <workdir>/profile
    c.log.profile_steps = 3  # steps in that trace
    c.compile = ConfigDict()
    c.compile.cache_dir = ""  # compiled programs; "" is the user's cache folder, "off" is none
    c.precompile = ConfigDict()  # --mode=precompile: what programs would take on a TPU
    c.precompile.topology = "v5e:2x2"  # generation and chips a side: v6e:4x4, v4:2x2x1, v5p:2x2x2
    c.precompile.num_slices = 1  # of these chips, with a slower network between them
    c.precompile.programs = ("sample", "train")  # drawing class images, the train step
    c.export = ConfigDict()
    c.export.dtype = "float16"  # of the exported weights: "float16", "bfloat16", "float32"
    c.export.single_file = False  # Stable Diffusion: one file for A1111 and ComfyUI as well
    return c.lock()


CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("float32", "bfloat16"),
    "stages": ("base", "upscaler"),
    "subject.captions": ("prompt", "files"),
    "subject.masks": ("none", "files", "alpha"),
    "prior.kind": ("images", "prediction"),
    "train.remat": tuple(REMAT),
    "precompile.programs": ("sample", "train"),
    "adapt.name": tuple(ADAPTERS),
    "adapt.then": tuple(THEN),
    "loss.learned_variance": ("fixed", "trained"),
    "optim.name": tuple(OPTIMIZERS),
    "optim.schedule": tuple(LR_SCHEDULES),
    "sampler.name": tuple(SAMPLERS),
    "sampler.threshold": tuple(THRESHOLDS),
    "sharding.rules": ("fsdp", "columns", "rows", "replicate"),
    "export.dtype": ("float16", "bfloat16", "float32"),
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
        "subject.crops",
        "prior.batch_size",
        "train.num_steps",
        "train.batch_size",
        "train.accumulate",
        "train.text_encoder_steps",
        "train.max_bad_steps",
        "train.log_every",
        "train.checkpoint_every",
        "train.max_to_keep",
        "resolution",
        "upscaler.num_steps",
        "upscaler.batch_size",
        "upscaler.accumulate",
        "sampler.num_steps",
        "sampler.upscaler_num_steps",
        "sample.num_images",
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
    ),
    "(0, inf)": (
        "adapt.alpha",
        "adapt.inversion_learning_rate",
        "optim.learning_rate",
        "optim.text_encoder_learning_rate",
        "upscaler.learning_rate",
    ),
    "(0, 1)": ("train.prior_fraction",),
    "[1, 25]": ("benchmark.num_prompts",),
    "[0, 1)": ("train.ema_decay", "optim.b1", "optim.b2"),
    "[0, 1]": ("optim.final_fraction", "loss.outside_mask"),
    "[0, 999]": (
        "loss.first_step",
        "loss.last_step",
        "upscaler.aug_level",
        "upscaler.sample_aug_level",
    ),
    "[0, 2147483647]": ("seed",),
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
    "restore.*",
)
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
